"""Where models come from: the catalog, the hub, paths; and what of them lies on this machine."""
