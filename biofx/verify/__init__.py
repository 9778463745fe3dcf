"""Verify: does a transformed model compute what the original computes?"""

from biofx.verify.verify import Verification, verify

__all__ = ["Verification", "verify"]
