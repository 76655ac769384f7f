"""What a program would take on a TPU slice, from compiling it ahead of time.

    topologies   slices by name, and the figures of their chips
    programs     a compiled program: bytes by kind, FLOPs, collectives, time
    hlo          its text: loops, collectives, cycles
    products     FLOPs of matrix products, loops and kernels counted in full
    training     the step of a training run
    serving      prefill and a decode step, with a method's compressed cache
    show         tables, and plan.json

No array is made, and no TPU is needed: libtpu compiles on any machine.
"""
