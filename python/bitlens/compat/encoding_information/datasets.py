"""Not offered: the original reads the data sets of its paper here."""

raise ImportError(
    "bitlens.compat.encoding_information has no datasets: bitlens.datasets.read_stack reads npy, npz, TIFF and HDF5 "
    "files, bitlens.datasets.load_scene scenes that come with scikit-image; pass other images as arrays"
)
