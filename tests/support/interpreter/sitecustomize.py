"""On PYTHONPATH with TRITON_INTERPRET=1: two fixes to Triton's interpreter, with which Liger's kernels run on a CPU.

Floating-point arguments become fp32 scalars, as in compiled kernels, and ``libdevice.rsqrt`` is implemented.
"""

import os

if os.environ.get("TRITON_INTERPRET") == "1":
    import numpy as np
    import triton.language as tl
    import triton.language.extra.libdevice as libdevice
    import triton.runtime.interpreter as interpreter

    convert = interpreter._implicit_cvt

    def as_compiled(argument: object) -> object:
        if isinstance(argument, float):
            return tl.tensor(interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32), tl.float32)
        return convert(argument)

    interpreter._implicit_cvt = as_compiled
    libdevice.rsqrt = lambda x: 1.0 / tl.sqrt(x)
