"""From a response to a verdict: extraction, the Math-Verify judge, and the killable workers.

Imports only the standard library and Math-Verify (the latter in workers alone), so any
process can use it: ``from openrlhf_orz.reward import Grader``.
"""

from openrlhf_orz.reward.extract import extract_answer, has_format
from openrlhf_orz.reward.grader import Grader
from openrlhf_orz.reward.verdict import Grade, Verdict

__all__ = ["Grade", "Grader", "Verdict", "extract_answer", "has_format"]
