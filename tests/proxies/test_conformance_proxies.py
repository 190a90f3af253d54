"""Every proxy keeps the contract of its family."""

from __future__ import annotations

from kdnas.testing import ProxyConformance, suites

globals().update(suites(ProxyConformance))
