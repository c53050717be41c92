"""The mathematics: positions, visibility, frequencies, strategies and their solved settings, without graphs.

A frame is a latent frame in all of this package, and its tokens are counted in raster order.
"""
