"""GVM's counts as its authors' code has them, in plain Python: em/stage_2_calc_sample_size.py of RLHFlow/GVM."""

import math

ALPHA, BETA = 1e-3, 2.0


def allocate(norms: list[float], accepted: list[bool], groups: list[int], budget: int) -> list[int]:
    """Samples of each prompt; equal shares where no sample was accepted (the authors' code divides by zero).

    Args:
      norms: G of each pilot.
      accepted: whether it counts.
      groups: its prompt's number, from 0 on.
      budget: their sum.
    """
    weights = []
    for prompt in sorted(set(groups)):
        mine = [i for i, group in enumerate(groups) if group == prompt]
        right = [norms[i] for i in mine if accepted[i]]
        rate = len(right) / len(mine)
        mean = sum(right) / len(right) if right else 0.0
        weights.append(mean / math.sqrt(rate + ALPHA / rate ** (BETA - 1)) if right else 0.0)
    if not any(weights):
        weights = [1.0] * len(weights)
    wanted = [weight / sum(weights) * budget for weight in weights]
    counts = [round(x) for x in wanted]
    step = 1 if sum(counts) < budget else -1
    furthest = sorted(range(len(counts)), key=lambda i: step * (counts[i] - wanted[i]))
    for i in furthest[: abs(budget - sum(counts))]:
        counts[i] += step
    return counts
