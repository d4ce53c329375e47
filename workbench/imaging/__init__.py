"""Pictures: decoding, color, coordinates, cropping, resampling. numpy and Pillow."""
