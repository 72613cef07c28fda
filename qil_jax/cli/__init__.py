"""The command line: `qil VERB ...`, each verb a module with `main(argv)`."""
