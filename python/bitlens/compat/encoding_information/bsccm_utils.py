"""Not offered: the original reads one data set of a package of its own here."""

raise ImportError(
    "bitlens.compat.encoding_information has no bsccm_utils: read the images with the package bsccm and pass arrays "
    "(n, row, column); bitlens.calibrate finds gain and offset of a sensor, image_utils.add_noise adds shot noise"
)
