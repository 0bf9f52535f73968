"""What is written: frozen values as arrays and JSON, files whole or absent, checkpoints and their lock."""
