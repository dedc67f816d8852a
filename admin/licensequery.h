/* Which licenses a filter means: for lists, exports and bulk actions alike. */
#ifndef ADMIN_LICENSEQUERY_H
#define ADMIN_LICENSEQUERY_H

#include "finder.h"

/* The parameters of a filter; LICENSE_LIST_PARAMS of licenses.h has the sort as well. */
extern const struct query_param *const LICENSE_FILTER_PARAMS;
enum err licensequery_new(struct api *rq, const struct filter *filter, struct finder **ret) MUST_USE;
/* The networks of the license's allowed_cidrs, for filters: after each change of them or of its vendor. */
enum err licensequery_index(struct api *rq, struct str license_id) MUST_USE;

#endif
