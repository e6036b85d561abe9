from ofa_exit.cli.renamed import run

if __name__ == "__main__":
    run("ofa_exit.evaluation.submission", "submit")
