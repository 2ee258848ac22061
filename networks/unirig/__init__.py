"""UniRig: predicts a skeleton and skin weights for a mesh (Zhang et al. 2025, "One Model to Rig Them All").

`pipeline` makes the skeleton and `skinning` the weights. Everything works in UniRig's frame, Z up with the character
looking towards -Y; see `mesh_prep.y_up_to_z_up`.
"""
