"""``python -m ofa_exit`` prints the folder that fairseq's ``--user-dir`` wants."""

from importlib.util import find_spec

if __name__ == "__main__":
    spec = find_spec("ofa_exit.user_dir")  # finds it without importing it, which takes seconds
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("ofa_exit is not installed: run pip install on its checkout first")
    print(spec.submodule_search_locations[0])
