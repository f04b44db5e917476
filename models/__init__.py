"""What a network is: structures, layers, networks, and the files they are kept in."""
