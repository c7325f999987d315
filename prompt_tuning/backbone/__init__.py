"""The frozen backbone: found, loaded, fingerprinted, and opened for prefixes."""
