"""Where arrays live: the mesh of devices, and rules from paths to shardings."""
