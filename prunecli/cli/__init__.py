"""The command line: a thin coat over the stories of prunecli/pipeline. All printing happens here."""
