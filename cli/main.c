/* pullgate: the command line of the admin API. Options of the program, and which file a command's first word stands for. */
#include <stdio.h>
#include <string.h>

#include "pullgate/jv.h"
#include "pullgate/log.h"
#include "pullgate/mem.h"
#include "pullgate/str.h"

#include "cli.h"

static const char help_text[] =
    "usage: pullgate [--url URL] [--token-file FILE] [--ca-file FILE] [--json] [--dry-run] COMMAND …\n"
    "\n"
    "  pullgate RESOURCE list [--FIELD VALUE …] [--limit N]      customers licenses plans orders coupons applications versions upstreams\n"
    "  pullgate RESOURCE get ID|SLUG|NAME                        credentials transfers webhooks mail-templates users tokens vendors pulls\n"
    "  pullgate RESOURCE create --FIELD VALUE …                  audit events …: pullgate help RESOURCE lists a resource's commands and options\n"
    "  pullgate RESOURCE update ID|SLUG|NAME --FIELD VALUE …\n"
    "  pullgate RESOURCE delete ID|SLUG|NAME\n"
    "  pullgate licenses activate|suspend|reinstate|revoke|renew|extend|change-plan|rotate-key|reset|transfer|history|usage|… ID|NAME [--FIELD VALUE …]\n"
    "  pullgate licenses import FILE.csv|FILE.ndjson             pullgate licenses export --format csv [-o FILE]\n"
    "  pullgate credentials list|create|delete|rotate [ID] --customer CUSTOMER\n"
    "  pullgate explain --customer C --repository R --reference TAG|DIGEST [--at TIME]     exit 0 allow, 3 deny\n"
    "  pullgate apply -f FILE [--dry-run] [--yes] [--reason TEXT]     what the file says there should be; shows the difference first\n"
    "  pullgate api METHOD PATH [JSON|-]                         any request, as it is\n"
    "  pullgate completion bash|zsh|fish\n"
    "  pullgate bundle LICENSE -o DIRECTORY --registry URL [--platform all|OS/ARCH]   what it grants as an OCI layout, with its license file\n"
    "  pullgate verify FILE (--jwks FILE | --public-key FILE) [--crl FILE] [--at TIME]  a license file, offline\n"
    "                                                  exit 0 valid, 1 not to be believed, 3 expired or not yet, 4 revoked\n"
    "\n"
    "  on the machine of the daemons, with their configuration (--config FILE):\n"
    "  pullgate doctor [--only admin|proxy] [--json]   what is wrong, and how to mend it; exit 1: a check failed\n"
    "  pullgate audit verify [--file EXPORT]           whether each row of the audit log is as it was written, and none is missing\n"
    "  pullgate backup FILE|DIRECTORY [--keep N] [--passphrase-file FILE [--with-keys]]\n"
    "  pullgate restore FILE [--check] [--passphrase-file FILE [--with-keys]]         pullgate-admin must be stopped\n"
    "\n"
    "  create licenses:     --customer globex --application shop --name 'Globex Prod' --grant range:^1.4 --expires-at 2027-03-01 --status active\n"
    "  create applications: --slug shop --name Shop --repository shop/api=private:acme/api --repository chart,shop/chart=private:acme/chart\n"
    "  Objects: --limits max_instances=5 --metadata region=eu; any member: --set KEY=JSON; secrets: --password-file FILE. --dry-run shows the effect only.\n"
    "\n"
    "Settings: PULLGATE_URL, PULLGATE_TOKEN or PULLGATE_TOKEN_FILE, PULLGATE_CA_FILE, or the profile ~/.config/pullgate/profile (0600) with lines\n"
    "url=…, token=… or token_file=…, ca_file=….  Exit: 0 done, 1 refused, 2 usage, 3 denied or not signed in, 4 no answer.\n";

static int explain_command(int argc, char **argv)
{
    static const char *const names[] = {"--customer", "--repository", "--reference", "--at", "--client"};
    struct strbuf path = {0};

    sb_addc(&path, "/explain?");
    for (int i = 0; i < argc; i += 2) {
        bool known = false;
        for (size_t n = 0; n < sizeof names / sizeof *names; n++)
            known = known || strcmp(argv[i], names[n]) == 0;
        if (!known || i + 1 == argc)
            die(EXIT_USAGE, known ? "%s needs a value" : "explain does not take %s", argv[i]);
        sb_addf(&path, "%s%s=", i > 0 ? "&" : "", argv[i] + 2);
        add_query_value(&path, str_c(argv[i + 1]));
    }
    struct jv *a = api("GET", path.p, NULL);
    const char *decision = jv_get_c(a, "decision", "unknown"), *message = jv_get_c(a, "message", "");
    int rc = strcmp(decision, "allow") == 0 ? EXIT_OK : strcmp(decision, "deny") == 0 ? EXIT_DENIED : EXIT_UNREACHABLE;
    if (cli.json) {
        print_json(a);
    } else {
        printf("%s (%s)%s%s\n", decision, jv_get_c(a, "reason", ""), message[0] != '\0' ? ": " : "", message);
        print_table("license_id name effective_status decision reason", jv_get(a, "considered"));
    }
    jv_free(a);
    sb_free(&path);
    return rc;
}

static int api_command(int argc, char **argv)
{
    struct jv *body = NULL;
    struct error error = {0};

    if (argc < 2)
        die(EXIT_USAGE, "api METHOD PATH [JSON|-]");
    if (argc > 2) {
        char *text = strcmp(argv[2], "-") == 0 ? read_file("-") : mem_strdup(argv[2]);
        if (jv_parse(str_c(text), &JV_LIMITS_API, &body, &error) != ERR_OK)
            die(EXIT_USAGE, "the body is %s", error.text);
        mem_free(text);
    }
    struct jv *answer = api(argv[0], argv[1], body);
    if (answer != NULL)
        print_json(answer);
    jv_free(answer);
    jv_free(body);
    return EXIT_OK;
}

static const struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    bool is_local; /* does not ask the API, or sees to its settings itself */
} COMMANDS[] = {
    {"backup", backup_command, true},       {"restore", restore_command, true}, {"doctor", doctor_command, true},
    {"completion", completion_command, true}, {"apply", apply_command, false},  {"explain", explain_command, false},
    {"api", api_command, false},            {"verify", verify_command, true},   {"bundle", bundle_command, false},
};

static int command(int argc, char **argv)
{
    for (size_t i = 0; i < sizeof COMMANDS / sizeof *COMMANDS; i++)
        if (strcmp(argv[0], COMMANDS[i].name) == 0) {
            if (!COMMANDS[i].is_local)
                settings_read();
            return COMMANDS[i].run(argc - 1, argv + 1);
        }
    if (strcmp(argv[0], "audit") == 0 && argc > 1 && strcmp(argv[1], "verify") == 0)
        return audit_command(argc - 2, argv + 2);
    settings_read();
    return document_command(argc, argv);
}

int main(int argc, char **argv)
{
    int i = 1;

    log_init("pullgate", LOG_LEVEL_ERROR);
    for (; i < argc && argv[i][0] == '-'; i++) {
        if (strcmp(argv[i], "--json") == 0)
            cli.json = true;
        else if (strcmp(argv[i], "--dry-run") == 0)
            cli.dry_run = true;
        else if (strcmp(argv[i], "--url") == 0 && i + 1 < argc)
            cli.url = mem_strdup(argv[++i]);
        else if (strcmp(argv[i], "--token-file") == 0 && i + 1 < argc)
            cli.token = read_file(argv[++i]);
        else if (strcmp(argv[i], "--ca-file") == 0 && i + 1 < argc)
            cli.ca = read_file(argv[++i]);
        else if (strcmp(argv[i], "--version") == 0)
            return puts("pullgate " PULLGATE_VERSION), EXIT_OK;
        else if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            return fputs(help_text, stdout), EXIT_OK;
        else
            die(EXIT_USAGE, "unknown option %s; pullgate help tells", argv[i]);
    }
    if (i < argc && strcmp(argv[i], "help") == 0 && i + 1 < argc) {
        settings_read();
        document_help(argv[i + 1]);
        return EXIT_OK;
    }
    if (i == argc || strcmp(argv[i], "help") == 0)
        return fputs(help_text, i == argc ? stderr : stdout), i == argc ? EXIT_USAGE : EXIT_OK;
    return command(argc - i, argv + i);
}
