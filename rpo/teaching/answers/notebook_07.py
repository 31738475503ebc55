"""Exercises of notebook 07: answerable without a model."""

from __future__ import annotations

import math

from rpo.core.conversions import to_trl, trl_batch_weight
from rpo.core.objectives import RPO
from rpo.teaching.exercise import Exercise

PAIRS, PER_DEVICE, ACCUMULATION, PROCESSES, EPOCHS = 270, 8, 4, 2, 3
UPDATES_PER_EPOCH = math.ceil(math.ceil(PAIRS / (PER_DEVICE * PROCESSES)) / ACCUMULATION)

EXERCISES: dict[str, Exercise] = {
    "07.1": Exercise(
        question="per_device_train_batch_size=8, gradient_accumulation_steps=4, two processes: pairs an update?",
        solve=lambda: PER_DEVICE * ACCUMULATION * PROCESSES,
        hint="Each process sees its own micro-batches, so many before each update.",
        because="8 x 4 x 2 = 64. The loss is one mean over all 64, however they are cut.",
        mistakes={
            "The micro-batches that are accumulated count too.": lambda: PER_DEVICE * PROCESSES,
            "Both processes contribute to the same update.": lambda: PER_DEVICE * ACCUMULATION,
            "Count pairs: each has two responses, but is one pair.": lambda: 2 * PER_DEVICE * ACCUMULATION * PROCESSES,
        },
    ),
    "07.2": Exercise(
        question="The same settings, 270 pairs, num_train_epochs=3: how many updates?",
        solve=lambda: EPOCHS * UPDATES_PER_EPOCH,
        hint="How many updates does one pass take? The last one of a pass may be short.",
        because="270 / 64 = 4.2: 5 updates a pass, the last one on fewer pairs; 15 in all.",
        tolerance=0.001,
        mistakes={
            "The short update at the end of each pass counts as well.": lambda: (
                EPOCHS * (PAIRS // (PER_DEVICE * ACCUMULATION * PROCESSES))
            ),
            "A pass ends with a short update; passes are not joined.": lambda: math.ceil(
                EPOCHS * PAIRS / (PER_DEVICE * ACCUMULATION * PROCESSES)
            ),
            "Those are the micro-batches of one process.": lambda: EPOCHS * math.ceil(PAIRS / (PER_DEVICE * PROCESSES)),
        },
    ),
    "07.3": Exercise(
        question="What must the preference loss of the very first batch be, in nats?",
        solve=lambda: math.log(2.0),
        hint="Before the first update policy and reference are the same: what is the margin of every pair?",
        because="Every margin is 0, and -log sigmoid(0) = ln 2. Anything else means policy and reference differ.",
        mistakes={
            "sigmoid(0) is one half; the loss is minus its logarithm.": lambda: 0.5,
            "The margin is 0; the loss is softplus of it.": lambda: 0.0,
            "In nats, not bits.": lambda: 1.0,
        },
    ),
    "07.4": Exercise(
        question="RPO(beta=0.1, eta=0.05), a batch with chosen responses of 20, 40 and 60 tokens: the weight of TRL's "
        "'sft' loss (a mean over tokens) that gives the same SFT term?",
        solve=lambda: trl_batch_weight(RPO(beta=0.1, eta=0.05), [20, 40, 60]),
        hint="Ours: eta beta sum(-S_i) / 3. TRL's: w sum(-S_i) / sum(T_i).",
        because="w = eta beta (20 + 40 + 60) / 3 = 0.005 x 40 = 0.2.",
        mistakes={
            "That weighs sums; TRL's loss divides by the number of tokens.": lambda: 0.05 * 0.1,
            "The weight here is eta beta, not eta.": lambda: 0.05 * 40,
            "Three pairs share the 120 tokens.": lambda: 0.05 * 0.1 * 120,
        },
    ),
    "07.5": Exercise(
        question="You copy the weight 0.2 into a TRL run, beta = 0.1, chosen responses of 400 tokens on average. "
        "Which eta (token sums) is that?",
        solve=lambda: 0.2 / (to_trl(RPO(beta=0.1, eta=1.0), chosen_lengths=[400]).settings["loss_weights"][1]),
        hint="w = eta beta x mean length.",
        because="eta = 0.2 / (0.1 x 400) = 0.005: the same weight is a tenth of the pessimism at ten times the length.",
        mistakes={
            "Divide by the mean length too.": lambda: 2.0,
            "Divide by beta too.": lambda: 0.2 / 400,
        },
    ),
}
