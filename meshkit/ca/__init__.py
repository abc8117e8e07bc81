"""The mesh's certificate authority: names, keys, and what is signed with them."""
