"""One drawing: its schedule, conditioning, guidance and callback in one object, `run.run.Run`, which calls the UNet."""
