"""Numbers for the names that ``Grade.rule`` takes: OpenRLHF carries only numbers with a sample."""

from openrlhf_orz.reward.guards import GUARDS
from openrlhf_orz.reward.mends import MENDS

RULES = ("", "identical", "reference", "boxes_disagree", *MENDS, *(name for name, *_ in GUARDS))


def rule_number(rule: str | None) -> int:
    """The place of a rule in ``RULES``; 0 (none) also for one that is not listed."""
    return RULES.index(rule) if rule in RULES else 0
