"""A share of a domain's connections goes to its canaries: `whip proxy --plugin recipes/canary.py`.

Canaries are agents with the label canary=true: `whip client --label canary=true ...`. Where a
domain has none, or nothing but canaries, the choice is left to the picker.
"""

import random

from whip_core import hookimpl

SHARE = 0.1


@hookimpl
def whip_pick(candidates):
    canaries = [agent for agent in candidates if agent.labels.get("canary") == "true"]
    others = [agent for agent in candidates if agent not in canaries]
    if not (canaries and others):
        return None
    return random.choice(canaries if random.random() < SHARE else others)
