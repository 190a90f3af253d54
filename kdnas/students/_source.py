"""A student's network as Python source that needs only torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from kdnas.core.arch import Arch
from kdnas.core.task import TaskSpec

_IMPORTS = (
    {"Callable[": "from collections.abc import Callable", "@dataclass": "from dataclasses import dataclass"}
    | {"Any": "from typing import Any"},
    {"torch.": "import torch", "nn.Module": "from torch import Tensor, nn"}
    | {"functional.": "from torch.nn import functional"},
)
"""Of the standard library, and of torch: by what the code must have for a line to be needed."""

_HEADER = '''"""Student {arch_id} of the {family} family. Needs only torch.

`build_student()` returns the network, freshly initialised: load the trained weights with `load_state_dict`.
Input: {inputs}. Output: logits {outputs}.
"""

from __future__ import annotations

'''

_BUILD = '''def build_student() -> nn.Module:
    """Return the student, freshly initialised."""
    return {built}
'''


def standalone(
    family: str, arch: Arch, task: TaskSpec, parts: Sequence[Callable[..., Any]], plan: str, built: str
) -> str:
    """Return a module that defines `build_student()`.

    Args:
        family: What the family is called.
        arch: Of the student.
        task: What the student is for.
        parts: The classes and functions that it consists of, each after those that it names where it is defined.
        plan: What the constant `PLAN` is, as Python source.
        built: The network, as Python source that names `PLAN`.
    """
    pieces = [*(inspect.getsource(part).rstrip() for part in parts), f"PLAN = {plan}", _BUILD.format(built=built)]
    body = "\n\n\n".join(pieces)
    imports = "\n\n".join("\n".join(line for sign, line in known.items() if sign in body) for known in _IMPORTS)
    header = _HEADER.format(arch_id=arch.arch_id, family=family, inputs=_inputs(task), outputs=_outputs(task))
    return f"{header}{imports}\n\n\n{body}"


def _inputs(task: TaskSpec) -> str:
    named = {"pixels": "normalised images"}
    shaped = [f"{named.get(taken.kind, taken.name)} [B, {', '.join(map(str, taken.shape))}]" for taken in task.inputs]
    return ", ".join(shaped)


def _outputs(task: TaskSpec) -> str:
    return f"[B, {task.rows}, {task.outputs}]" if task.rows > 1 else f"[B, {task.outputs}]"
