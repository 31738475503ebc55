"""Other ways to solve many instances, where they are installed: `python benchmarks/batched_peers.py [--smoke]`.

The instances of `batched.py`, each peer beside the batched solver in the same process, by turns. Moreau: its CPU
batch, of the cone program that cvxpy makes for it; cvxpy's own work is not counted. JAX: jit(vmap(Newton)) in
float64, damped by halving, its compilation not counted. Processor seconds, of all threads that a peer starts. Needs
moreau and jax, which the package does not: what is not installed is left out and said so. CVXPYgen 1.0.2 is not here:
its code generation refuses exponential cones with ECOS, SCS and QOCO, and with Clarabel its C++ part needs Eigen.
Writes results/batched_peers.json; `python benchmarks/tables.py` the table.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import cvxpy as cp
import numpy as np
from batched import BETA, BOUND, ETA, Compiled, instances
from machine import describe_machine

from rpo.bandit import Box
from rpo.bandit.batched import solve_batch
from rpo.core.objectives import RPO
from rpo.core.records import environment, jsonable

Solve = Callable[[Any], Any]  # win counts (S, X, A, A) to rewards (S, X, A)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a call returns, and its processor seconds."""
    began = time.process_time()
    return call(), time.process_time() - began


def moreau_batch(problem: Any, reward_class: Any, wins: Any) -> tuple[Callable[[], Any], Solve]:
    """Return Moreau's solve of all instances, and how the rewards are read from its points."""
    import moreau
    from cvxpy.reductions.solvers.conic_solvers.moreau_conif import dims_to_solver_cones

    compiled = Compiled(problem, reward_class)
    rows, variable = [], compiled.r
    for one in wins:
        compiled.set(one, problem.reference)
        data, _, _ = compiled.problem.get_problem_data(cp.MOREAU)
        rows.append((data["c"], data["b"], data["A"].tocsr()))
    first = rows[0][2]
    first.sort_indices()
    cones = dims_to_solver_cones(data["dims"])
    cones.dir_cones = [moreau.DirectConeSpec(kind=c.kind, indices=c.indices, **c.extras) for c in data["dir_cones"]]
    tight = moreau.IPMSettings(tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    settings = moreau.Settings(device="cpu", batch_size=len(wins), ipm_settings=tight)
    nothing = np.zeros(first.shape[1] + 1, dtype=int)
    solver = moreau.CompiledSolver(
        n=first.shape[1], m=first.shape[0], P_row_offsets=nothing, P_col_indices=[], cones=cones, settings=settings,
        A_row_offsets=first.indptr, A_col_indices=first.indices,
    )  # fmt: skip
    for _, _, matrix in rows:
        matrix.sort_indices()
        if not np.array_equal(matrix.data, first.data):
            raise RuntimeError("the instances were to differ in the objective alone")
    solver.setup(np.zeros(0), first.data)
    q, b = (np.stack([row[k] for row in rows]) for k in (0, 1))
    place = data["param_prob"].var_id_to_col[variable.id] if isinstance(variable, cp.Variable) else None

    def read(solution: Any) -> Any:
        x, a = problem.reference.shape
        # cvxpy stacks columns
        return np.asarray(solution.x)[:, place : place + x * a].reshape(len(wins), a, x).transpose(0, 2, 1)

    return lambda: solver.solve(q, b), read


def jax_newton(problem: Any, reward_class: Any, wins: Any) -> tuple[Callable[[], Any], Solve]:
    """Return a Newton method in JAX, of the unconstrained class, last entry of each prompt at zero."""
    if isinstance(reward_class, Box):
        raise NotImplementedError("the unconstrained class alone")
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    reference, first, second = jnp.asarray(problem.reference), *np.triu_indices(wins.shape[2], k=1)
    log_reference = jnp.log(reference)

    def loss(free: Any, lost: Any, both: Any, d: Any, at: Any) -> Any:
        r = jnp.append(free, 0.0)
        z = r[first] - r[second]
        penalty = BETA * jax.nn.logsumexp(log_reference[at] + r / BETA) - reference[at] @ r
        return both @ jax.nn.softplus(-z) + lost @ z + ETA * d * penalty

    def newton(lost: Any, both: Any, d: Any, at: Any) -> Any:
        def step(state: Any) -> Any:
            x, _, count = state
            g, h = jax.grad(loss)(x, lost, both, d, at), jax.hessian(loss)(x, lost, both, d, at)
            move = -jnp.linalg.solve(h + 1e-14 * jnp.eye(x.size), g)
            before, sizes = loss(x, lost, both, d, at), 0.5 ** jnp.arange(12.0)
            after = jax.vmap(lambda size: loss(x + size * move, lost, both, d, at))(sizes)
            size = sizes[jnp.argmax(after <= before + 1e-4 * sizes * (g @ move))]
            return x + size * move, jnp.abs(g).sum(), count + 1

        start = jnp.zeros(wins.shape[2] - 1), jnp.inf, 0
        return jnp.append(jax.lax.while_loop(lambda s: (s[1] > 1e-13) & (s[2] < 60), step, start)[0], 0.0)

    weights = wins / wins.sum(axis=(1, 2, 3), keepdims=True)
    lost = jnp.asarray(weights[:, :, second, first])
    both, d = jnp.asarray(weights[:, :, first, second]) + lost, jnp.asarray(weights.sum(axis=(2, 3)))
    prompts = jnp.arange(wins.shape[1])
    call = jax.jit(jax.vmap(jax.vmap(newton), in_axes=(0, 0, 0, None)))
    call(lost, both, d, prompts).block_until_ready()  # compiled here
    return lambda: call(lost, both, d, prompts).block_until_ready(), np.asarray


PEERS = {"moreau": moreau_batch, "jax": jax_newton}


def measure(peer: str, name: str, seeds: int, blocks: int) -> dict[str, Any]:
    """Return paired times an instance of a peer and of the batched solver, and how far their values are apart."""
    problem, classes, wins = instances(seeds)
    reward_class, objective = classes[name], RPO(beta=BETA, eta=ETA, base="reference")
    setup = time.perf_counter()
    solve, read = PEERS[peer](problem, reward_class, wins)
    setup = time.perf_counter() - setup
    rows = []
    for _ in range(blocks):
        points, slow = timed(solve)
        batch, fast = timed(
            lambda: solve_batch(wins, objective, reference=problem.reference, reward_class=reward_class)
        )
        rows.append({"peer_s": slow / seeds, "batched_s": fast / seeds, "ratio": slow / fast})
    rewards = np.clip(read(points), 0.0, BOUND) if name == "box" else read(points)
    above = np.array([value(problem, one, r) for one, r in zip(wins, rewards, strict=True)]) - batch.value
    ratios = [row["ratio"] for row in rows]
    return {
        "peer": peer, "version": importlib.metadata.version(peer), "class": name, "seeds": seeds, "blocks": rows,
        "setup_s": setup, "ratio_median": float(np.median(ratios)), "ratio_min": min(ratios), "ratio_max": max(ratios),
        "value_above_batched": float(np.nanmax(above)), "failed": float(np.mean(~(above < 1e-6))),
    }  # fmt: skip


def value(problem: Any, wins: Any, rewards: Any) -> float:
    """Return the loss of the reward side, at rewards (X, A)."""
    weights, d = wins / wins.sum(), wins.sum(axis=(1, 2)) / wins.sum()
    differences = rewards[:, :, None] - rewards[:, None, :]
    lse = np.log((problem.reference * np.exp((rewards - rewards.max(1, keepdims=True)) / BETA)).sum(1))
    penalty = BETA * lse + rewards.max(1) - (problem.reference * rewards).sum(1)
    return float((weights * np.logaddexp(0.0, -differences)).sum() + ETA * (d * penalty).sum())


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="seconds instead of minutes; nothing is written")
    smoke = parser.parse_args().smoke
    found, absent = [], {}
    for peer in PEERS:
        for name in ("unconstrained", "box"):
            try:
                found.append(measure(peer, name, 20 if smoke else 200, 2 if smoke else 5))
            except ImportError as error:
                absent[peer] = str(error)
            except NotImplementedError as error:
                absent[f"{peer}, {name}"] = str(error)
            else:
                row = found[-1]
                print(
                    f"{peer:9} {row['version']:8} {name:14} {row['ratio_median']:8.1f}x [{row['ratio_min']:.0f}, "
                    f"{row['ratio_max']:.0f}], value above batched's by at most {row['value_above_batched']:.1e}, "
                    f"off by more than 1e-6: {100 * row['failed']:.1f} %, set up in {row['setup_s']:.0f} s"
                )
    print("left out:", absent or "none")
    if not smoke and found:
        record = {"environment": environment(), "machine": describe_machine(), "peers": found, "absent": absent}
        path = Path(__file__).parent / "results" / "batched_peers.json"
        path.write_text(json.dumps(jsonable(record), indent=2) + "\n")
        print(f"written to {path}")


if __name__ == "__main__":
    main()
