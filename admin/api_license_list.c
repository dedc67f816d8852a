/* The list of licenses. Which ones is found out by licensequery.c; a row is read and printed by api_licenses.c. */
#include "licensequery.h"
#include "licenses.h"

enum err licenses_list(struct api *rq)
{
    struct filter filter = {0};
    struct finder *f = NULL;
    struct strbuf ids = {0};
    struct jv *items = NULL;
    enum err err = filter_of_query(rq, NULL, &filter);
    if (!err)
        err = licensequery_new(rq, &filter, &f);
    if (!err)
        err = finder_page(f, &ids, &items);
    struct str rest = sb_str(&ids), id;
    while (!err && str_next(&rest, '\n', &id) && id.n) {
        struct jv *v = NULL;
        err = licenses_shown(rq, id, &v);
        if (!err)
            jv_push(items, v);
    }
    finder_free(&f);
    filter_free(&filter);
    sb_free(&ids);
    return err;
}
