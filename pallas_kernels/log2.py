"""Softmax as the kernels compute it: to the base 2, which is what chips raise."""

import math

LOG2E = math.log2(math.e)
LOWEST = -1e30  # a finite stand-in for -inf, in units of log 2
FLOOR = LOWEST / 2  # a maximum is at least this, so that exp2(LOWEST - maximum) is 0
