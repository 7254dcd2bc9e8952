"""Not offered under this name, whose numbers have another unit."""

raise ImportError(
    "bitlens.compat.encoding_information.models has no multichannel_pixel_cnn: models.PixelCNN takes images "
    "(n, row, column, channel); its nats are per value, where MultiChannelPixelCNN's are per pixel of all channels"
)
