"""`rpo methods`: the preference objectives there are."""


def methods_command(resolved: str = "") -> None:
    """List the preference objectives: what each reads, what is known of its optimum, its source and its test."""
    from rpo.methods.registry import table

    print(table())
