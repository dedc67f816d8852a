/* Shell completions: scripts that ask this program for the words that can come next. */
#include <stdio.h>
#include <string.h>

#include "cli.h"

static const char bash[] = "_pullgate() {\n"
                           "    local IFS=$'\\n'\n"
                           "    COMPREPLY=($(compgen -W \"$(pullgate completion words \"${COMP_WORDS[@]:1}\" 2>/dev/null)\" -- \"${COMP_WORDS[COMP_CWORD]}\"))\n"
                           "}\n"
                           "complete -o default -F _pullgate pullgate\n";
static const char zsh[] = "#compdef pullgate\n"
                          "_pullgate() {\n"
                          "    local -a reply\n"
                          "    reply=(${(f)\"$(pullgate completion words \"${words[@]:1}\" 2>/dev/null)\"})\n"
                          "    compadd -a reply\n"
                          "}\n"
                          "compdef _pullgate pullgate\n";
static const char fish[] = "function __pullgate\n"
                           "    set -l words (commandline -opc) (commandline -ct)\n"
                           "    pullgate completion words $words[2..-1] 2>/dev/null\n"
                           "end\n"
                           "complete -c pullgate -f -a '(__pullgate)'\n";

int completion_command(int argc, char **argv)
{
    const char *shell = argc > 0 ? argv[0] : "";
    if (strcmp(shell, "bash") == 0) {
        fputs(bash, stdout);
    } else if (strcmp(shell, "zsh") == 0) {
        fputs(zsh, stdout);
    } else if (strcmp(shell, "fish") == 0) {
        fputs(fish, stdout);
    } else if (strcmp(shell, "words") == 0) {
        settings_read();
        document_words(argc - 1, argv + 1);
    } else {
        die(EXIT_USAGE, "completion bash|zsh|fish");
    }
    return EXIT_OK;
}
