"""``python -m daskgmm``: the command line."""

from daskgmm.cli import main

if __name__ == "__main__":
    main(prog_name="daskgmm")
