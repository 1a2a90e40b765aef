"""How fast a config compiles, trains, samples and reads its data on this machine."""
