"""`rpo methods`: the preference objectives there are."""


def methods_command(resolved: str = "") -> None:
    """List the preference objectives: what each reads, where it runs, what is known of its optimum, its source."""
    from rpo.bandit.simulation.methods import is_solvable
    from rpo.methods.registry import table

    print(table(is_solvable))
