"""
Colours of a photograph
=======================

A pixel is a row of three features: red, green and blue. A mixture with full covariances finds the
surfaces of a photograph, as the shades of one surface lie along a line in that space: from shadow
to light. Pixels are labelled, and the labels are an image again.
"""

# %%
# An image is labelled data
# -------------------------
# The photograph is an ``xarray.DataArray`` with the dimensions y, x and channel. ``feature_dim``
# says which of them has the features; the other two are stacked into rows, and every answer comes
# back with them. The shades are bytes, and stay bytes until a tile of them is worked on.

import os

import numpy as np
import xarray as xr
from matplotlib import pyplot
from sklearn.datasets import load_sample_image

from daskgmm import GaussianMixture

EVERY = 6 if os.environ.get("DASKGMM_EXAMPLES") == "small" else 1  # line and column
photograph = xr.DataArray(
    load_sample_image("china.jpg")[::EVERY, ::EVERY],
    dims=("y", "x", "channel"),
    coords={"channel": ["red", "green", "blue"]},
)

# %%
# Six surfaces
# ------------
# A shade is known to within rounding, which has the variance 1/12. As ``reg_covar`` that keeps a
# component from collapsing onto an area that is all of one shade, such as an overexposed sky.

model = GaussianMixture(6, tol=1e-4, feature_dim="channel", reg_covar=1 / 12, random_state=0).fit(photograph)
labels = model.predict(photograph)
certainty = model.predict_proba(photograph).max(axis=-1)

print(f"{labels.size:,} pixels, {model.n_iter_} iterations; labels have the dimensions {labels.dims}")
print("share    mean red green blue    deviation along the line of shades, across it")
order = np.argsort(-model.weights_)
for j in order:
    red, green, blue = model.means_[j]
    along, across = np.sqrt(np.linalg.eigvalsh(model.covariances_[j]))[:0:-1]
    print(f"{model.weights_[j]:5.1%}    {red:8.0f} {green:5.0f} {blue:4.0f}    {along:9.1f}, {across:.1f}")
print(f"{float((certainty > 0.9).mean()):.0%} of the pixels belong to one component by more than 90 %")

# %%
# Labels as an image
# ------------------
# Each pixel gets the mean colour of its component. Where two components are about equally probable,
# the last picture is dark: edges, and surfaces that share their colours.

painted = model.means_[labels.values].astype("uint8")
figure, panels = pyplot.subplots(2, 2, figsize=(9, 6.4), layout="constrained")
panels[0, 0].imshow(photograph)
panels[0, 0].set_title("photograph")
panels[0, 1].imshow(painted)
panels[0, 1].set_title("mean colour of each pixel's component")
drawn = panels[1, 1].imshow(certainty, cmap="cividis", vmin=0.5, vmax=1)
panels[1, 1].set_title("probability of that component")
figure.colorbar(drawn, ax=panels[1, 1], shrink=0.8, extend="min")
for axes in (panels[0, 0], panels[0, 1], panels[1, 1]):
    axes.set(xticks=[], yticks=[])
bars = panels[1, 0].bar(range(6), model.weights_[order] * 100, color=model.means_[order] / 255, edgecolor="black")
panels[1, 0].bar_label(bars, fmt="%.0f %%", padding=2)
panels[1, 0].set(title="share of the pixels", ylabel="%", xlabel="component, heaviest first", xticks=range(6))
panels[1, 0].spines[["top", "right"]].set_visible(False)
pyplot.show()
