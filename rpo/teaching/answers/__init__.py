"""The exercises of each notebook, a module a notebook: `EXERCISES`, a dict of name to Exercise."""
