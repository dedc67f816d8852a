/* Text from anybody on its way into a log line, a JSON answer, a status line. It comes back as it was (bytes that are no UTF-8 as one
 * code point each), the line stays one line without control bytes, and jansson reads the same from it. */
#include "fuzz.h"

#include "pullgate/jv.h"
#include "textline.h"

/* A reader of JSON strings of its own: the bytes back, \u00xx as one byte. False where the text is not what the writers may write. */
static bool read_back(struct str text, struct strbuf *ret)
{
    sb_reset(ret);
    if (text.n < 2 || text.p[0] != '"' || text.p[text.n - 1] != '"')
        return false;
    for (size_t i = 1; i < text.n - 1; i++) {
        unsigned char c = (unsigned char)text.p[i];
        if (c < 0x20 || c == 0x7f || c == '"')
            return false;
        if (c != '\\') {
            sb_add_char(ret, (char)c);
            continue;
        }
        if (++i >= text.n - 1)
            return false;
        uint8_t byte;
        switch (text.p[i]) {
        case '"':
        case '\\':
            sb_add_char(ret, text.p[i]);
            break;
        case 'n':
            sb_add_char(ret, '\n');
            break;
        case 'u':
            if (i + 4 >= text.n - 1 || text.p[i + 1] != '0' || text.p[i + 2] != '0' || !hex_decode(str_sub(text, i + 3, 2), &byte, 1))
                return false;
            sb_add_char(ret, (char)byte);
            i += 4;
            break;
        default:
            return false;
        }
    }
    return true;
}

static void check_json(struct str text, struct str was)
{
    struct strbuf back = {0}, doc = {0}, utf8 = {0};
    struct jv *v = NULL;
    static const struct jv_limits limits = {1 << 24, 16, 4};

    FUZZ_CHECK(read_back(text, &back), "not one clean JSON string");
    FUZZ_CHECK(str_eq(sb_str(&back), was), "reads back differently");
    sb_addf(&doc, "[%.*s]", STR(text));
    if (!memchr(was.p, 0, was.n)) { /* jansson refuses \u0000 */
        FUZZ_CHECK(jv_parse(sb_str(&doc), &limits, &v, NULL) == ERR_OK, "jansson does not read it");
        /* What jansson prints of it, we read the same. */
        struct str s = jv_str(jv_at(v, 0));
        sb_add_json(&utf8, s);
        struct jv *w = NULL;
        sb_reset(&doc);
        sb_addf(&doc, "[%.*s]", STR(sb_str(&utf8)));
        FUZZ_CHECK(jv_parse(sb_str(&doc), &limits, &w, NULL) == ERR_OK && jv_equal(v, w), "printed again it is another text");
        jv_free(w);
        jv_free(v);
    }
    sb_free(&back);
    sb_free(&doc);
    sb_free(&utf8);
}

/* One line of the log, through a pipe. */
static void check_log(struct str s)
{
    static int fds[2] = {-1, -1};
    static char got[65536], text[1024];
    int saved;

    if (fds[0] < 0)
        FUZZ_CHECK(pipe2(fds, O_CLOEXEC | O_NONBLOCK) == 0, "pipe");
    snprintf(text, sizeof text, "%.*s", (int)(s.n < 1000 ? s.n : 1000), s.p);
    log_set_level(LOG_LEVEL_INFO);
    fflush(stderr);
    saved = dup(STDERR_FILENO);
    dup2(fds[1], STDERR_FILENO);
    log_warn("%s", text);
    dup2(saved, STDERR_FILENO);
    close(saved);
    fuzz_quiet();
    ssize_t n = read(fds[0], got, sizeof got);
    FUZZ_CHECK(n > 0 && got[n - 1] == '\n' && memchr(got, '\n', (size_t)n) == got + n - 1, "a message makes no line, or more than one");
    for (ssize_t i = 0; i < n - 1; i++)
        FUZZ_CHECK((unsigned char)got[i] >= 0x20 && got[i] != 0x7f, "a control byte in the log");
    struct jv *v = NULL;
    static const struct jv_limits limits = {1 << 20, 64, 4};
    FUZZ_CHECK(jv_parse((struct str){got, (size_t)n - 1}, &limits, &v, NULL) == ERR_OK, "a log line that is no JSON");
    FUZZ_CHECK(str_eq_c(jv_get_str(v, "level"), "warn") && jv_len(v) == 4, "text has made members of a log line");
    struct strbuf as_json = {0}, back = {0};
    struct str msg = jv_get_str(v, "msg");
    sb_add_json(&as_json, msg);
    FUZZ_CHECK(read_back(sb_str(&as_json), &back), "msg");
    sb_free(&as_json);
    sb_free(&back);
    jv_free(v);
}

static void check_textline(struct str s, size_t max, size_t room)
{
    char *buf = mem_alloc(room ? room : 1);
    struct textline t = {buf, buf + room, false};

    TEXTLINE_LIT(&t, "{");
    char *start = t.p;
    textline_json(&t, s, max);
    if (!t.cut)
        check_json((struct str){start, (size_t)(t.p - start)}, str_sub(s, 0, max));
    FUZZ_CHECK(t.p <= t.end, "beyond the end of the line");
    textline_u64(&t, s.n);
    FUZZ_CHECK(t.p <= t.end, "beyond the end of the line");
    mem_free(buf);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_in in = {data, size};
    uint8_t max = fuzz_byte(&in), room = fuzz_byte(&in);
    struct str s = fuzz_rest(&in);
    char *copy = fuzz_exact(s);
    struct strbuf b = {0};

    fuzz_quiet();
    s.p = copy;
    if (s.n < 4096) {
        sb_add_json(&b, s);
        check_json(sb_str(&b), s);
        check_textline(s, max, (size_t)room * 4);
        check_textline(s, 4096, 32768);
        struct jv *v = jv_string(s); /* whatever the bytes: valid UTF-8 */
        sb_reset(&b);
        jv_dump(v, &b);
        for (size_t i = 0; i < b.n; i++)
            FUZZ_CHECK((unsigned char)b.p[i] >= 0x20, "a control byte in a JSON answer");
        jv_free(v);
        check_log(s);
    }
    sb_free(&b);
    mem_free(copy);
    return 0;
}
