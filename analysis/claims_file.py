"""Which file of claims is read: that of one version of the paper."""

from core.paths import ROOT

CLAIMS = "analysis/claims/2604.13076v3.yaml"  # relative to the checkout
CLAIMS_PATH = ROOT / CLAIMS
