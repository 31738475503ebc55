"""What each `rpo` subcommand does: a typed function a command; `rpo.cli` makes the options of its signature."""
