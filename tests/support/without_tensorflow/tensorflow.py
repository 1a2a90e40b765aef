"""First on PYTHONPATH, it makes TensorFlow look not installed: only event files need it, and it imports slowly."""

raise ImportError("No module named 'tensorflow'", name='tensorflow')
