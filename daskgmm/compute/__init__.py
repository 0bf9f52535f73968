"""Where rows come from and where work runs."""
