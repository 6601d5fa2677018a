"""The gateway and the admin plane run where no model can: they import neither torch nor the policy nor training."""

from __future__ import annotations

import subprocess
import sys

FORBIDDEN = ("torch", "policy", "training", "transformers", "service.triton", "service.local")


def test_gateway_and_admin_import_no_model_code():
    program = (
        "import sys, service.gateway, service.admin, service.openpi\n"
        "import service.revision, service.policies, service.backend\n"
        f"print([name for name in {FORBIDDEN!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"
