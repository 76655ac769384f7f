_MEM = {}


def calibration(model, kind):
    return _MEM[kind]


def remember(model, kind, arrays):
    _MEM[kind] = arrays
