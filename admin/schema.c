#include "schema.h"

/* The tables. Rules that hold for all of them:
 *   ids are prefixed text; every row belongs to a vendor, directly or through its parent;
 *   times are Unix seconds, UTC, columns named *_at, 0 = none; *_ms are milliseconds;
 *   JSON columns hold checked JSON of the kind their comment says, never NULL;
 *   `rev` counts the changes of a row that has an ETag;
 *   an applied migration's text never changes again: a further migration follows it. */

static const char MIGRATION_1[] =
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;\n"

    "CREATE TABLE vendors ("
    " id TEXT PRIMARY KEY, slug TEXT NOT NULL UNIQUE, name TEXT NOT NULL,"
    " is_first INTEGER NOT NULL DEFAULT 0," /* may use public names that no other vendor's slug begins */
    " time_zone TEXT NOT NULL DEFAULT 'UTC', renew_url TEXT NOT NULL DEFAULT '', support_contact TEXT NOT NULL DEFAULT '',"
    " created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, rev INTEGER NOT NULL DEFAULT 1) WITHOUT ROWID;\n"
    "CREATE UNIQUE INDEX vendors_first ON vendors(is_first) WHERE is_first=1;\n"

    "CREATE TABLE api_tokens ("
    " id TEXT PRIMARY KEY, vendor_id TEXT NOT NULL REFERENCES vendors(id), name TEXT NOT NULL,"
    " role TEXT NOT NULL CHECK (role IN ('owner','admin','viewer')),"
    " hash TEXT NOT NULL UNIQUE, prefix TEXT NOT NULL, is_bootstrap INTEGER NOT NULL DEFAULT 0,"
    " created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL DEFAULT 0, revoked_at INTEGER NOT NULL DEFAULT 0,"
    " last_used_at INTEGER NOT NULL DEFAULT 0, last_used_from TEXT NOT NULL DEFAULT '') WITHOUT ROWID;\n"
    "CREATE INDEX api_tokens_vendor ON api_tokens(vendor_id, created_at, id);\n"

    "CREATE TABLE upstreams ("
    " id TEXT PRIMARY KEY, vendor_id TEXT NOT NULL REFERENCES vendors(id), name TEXT NOT NULL, url TEXT NOT NULL,"
    " username TEXT NOT NULL DEFAULT '', password_sealed TEXT NOT NULL DEFAULT ''," /* keyring_seal, aad "<id>|password" */
    " ca TEXT NOT NULL DEFAULT '', redirects TEXT NOT NULL DEFAULT 'follow' CHECK (redirects IN ('follow','pass')),"
    " redirect_hosts TEXT NOT NULL DEFAULT '[]'," /* JSON array of strings */
    " realm TEXT NOT NULL DEFAULT '',"
    " created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, rev INTEGER NOT NULL DEFAULT 1,"
    " UNIQUE (vendor_id, name)) WITHOUT ROWID;\n"

    "CREATE TABLE applications ("
    " id TEXT PRIMARY KEY, vendor_id TEXT NOT NULL REFERENCES vendors(id), slug TEXT NOT NULL, name TEXT NOT NULL,"
    " description TEXT NOT NULL DEFAULT '', metadata TEXT NOT NULL DEFAULT '{}'," /* JSON object */
    " created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, archived_at INTEGER NOT NULL DEFAULT 0,"
    " rev INTEGER NOT NULL DEFAULT 1) WITHOUT ROWID;\n"
    "CREATE UNIQUE INDEX applications_slug ON applications(vendor_id, slug) WHERE archived_at=0;\n"

    "CREATE TABLE repositories ("
    " id TEXT PRIMARY KEY, application_id TEXT NOT NULL REFERENCES applications(id),"
    " name TEXT NOT NULL UNIQUE," /* public name, over the whole deployment */
    " upstream_id TEXT NOT NULL REFERENCES upstreams(id), upstream_repository TEXT NOT NULL,"
    " kind TEXT NOT NULL DEFAULT 'image' CHECK (kind IN ('image','chart','artifact')),"
    " tag_template TEXT NOT NULL DEFAULT '{version}',"
    " created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,"
    " synced_at INTEGER NOT NULL DEFAULT 0, sync_error TEXT NOT NULL DEFAULT '') WITHOUT ROWID;\n"
    "CREATE INDEX repositories_application ON repositories(application_id, created_at, id);\n"
    "CREATE INDEX repositories_upstream ON repositories(upstream_id);\n"

    "CREATE TABLE versions ("
    " id TEXT PRIMARY KEY, application_id TEXT NOT NULL REFERENCES applications(id), version TEXT NOT NULL,"
    " released_at INTEGER NOT NULL DEFAULT 0," /* named by the vendor; 0: first_seen_at counts */
    " channel TEXT NOT NULL DEFAULT '', notes TEXT NOT NULL DEFAULT '',"
    " first_seen_at INTEGER NOT NULL DEFAULT 0," /* by the sync or a pull; 0: never seen upstream */
    " source TEXT NOT NULL DEFAULT 'discovered' CHECK (source IN ('discovered','record')),"
    " created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, rev INTEGER NOT NULL DEFAULT 1,"
    " UNIQUE (application_id, version)) WITHOUT ROWID;\n"
    /* Tags that a version record names, where the repository's template does not make them. */
    "CREATE TABLE version_tags ("
    " version_id TEXT NOT NULL REFERENCES versions(id) ON DELETE CASCADE,"
    " repository_id TEXT NOT NULL REFERENCES repositories(id) ON DELETE CASCADE,"
    " tag TEXT NOT NULL, PRIMARY KEY (version_id, repository_id)) WITHOUT ROWID;\n"
    "CREATE UNIQUE INDEX version_tags_tag ON version_tags(repository_id, tag);\n"

    /* What each tag resolved to, oldest first by id. last_seen_at 0: it resolves to this digest when last looked at. A tag that
     * moves back to an earlier digest gets a further row. */
    "CREATE TABLE tag_history ("
    " id INTEGER PRIMARY KEY AUTOINCREMENT,"
    " repository_id TEXT NOT NULL REFERENCES repositories(id) ON DELETE CASCADE,"
    " tag TEXT NOT NULL, digest TEXT NOT NULL, media_type TEXT NOT NULL DEFAULT '', size INTEGER NOT NULL DEFAULT 0,"
    " first_seen_at INTEGER NOT NULL, last_seen_at INTEGER NOT NULL DEFAULT 0);\n"
    "CREATE INDEX tag_history_tag ON tag_history(repository_id, tag, id);\n"
    "CREATE INDEX tag_history_digest ON tag_history(repository_id, digest);\n"
    "CREATE UNIQUE INDEX tag_history_current ON tag_history(repository_id, tag) WHERE last_seen_at=0;\n"

    /* Verified top manifests and what they reach: the portal's sizes and platforms, explain by digest. */
    "CREATE TABLE manifests ("
    " repository_id TEXT NOT NULL REFERENCES repositories(id) ON DELETE CASCADE, digest TEXT NOT NULL,"
    " media_type TEXT NOT NULL, size INTEGER NOT NULL, artifact_type TEXT NOT NULL DEFAULT '',"
    " platforms TEXT NOT NULL DEFAULT '',"     /* "linux/amd64,linux/arm64/v8" */
    " total_bytes INTEGER NOT NULL DEFAULT 0," /* every node once */
    " annotations TEXT NOT NULL DEFAULT '',"   /* JSON object or '' */
    " built_at INTEGER NOT NULL, PRIMARY KEY (repository_id, digest)) WITHOUT ROWID;\n"
    "CREATE TABLE closure_nodes ("
    " repository_id TEXT NOT NULL, root_digest TEXT NOT NULL, kind TEXT NOT NULL CHECK (kind IN ('m','b')), digest TEXT NOT NULL,"
    " media_type TEXT NOT NULL DEFAULT '', size INTEGER NOT NULL DEFAULT 0,"
    " PRIMARY KEY (repository_id, root_digest, kind, digest),"
    " FOREIGN KEY (repository_id, root_digest) REFERENCES manifests(repository_id, digest) ON DELETE CASCADE) WITHOUT ROWID;\n"
    "CREATE INDEX closure_nodes_digest ON closure_nodes(repository_id, digest);\n"

    "CREATE TABLE customers ("
    " id TEXT PRIMARY KEY, vendor_id TEXT NOT NULL REFERENCES vendors(id), slug TEXT NOT NULL, name TEXT NOT NULL,"
    " email TEXT NOT NULL DEFAULT '', external_id TEXT NOT NULL DEFAULT '', metadata TEXT NOT NULL DEFAULT '{}',"
    " disabled INTEGER NOT NULL DEFAULT 0,"
    " created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, archived_at INTEGER NOT NULL DEFAULT 0,"
    " rev INTEGER NOT NULL DEFAULT 1) WITHOUT ROWID;\n"
    "CREATE UNIQUE INDEX customers_slug ON customers(vendor_id, slug) WHERE archived_at=0;\n"
    "CREATE INDEX customers_list ON customers(vendor_id, created_at, id);\n"

    "CREATE TABLE licenses ("
    " id TEXT PRIMARY KEY, vendor_id TEXT NOT NULL REFERENCES vendors(id),"
    " customer_id TEXT NOT NULL REFERENCES customers(id), application_id TEXT NOT NULL REFERENCES applications(id),"
    " name TEXT NOT NULL, type TEXT NOT NULL DEFAULT 'paid',"
    " status TEXT NOT NULL CHECK (status IN ('inactive','active','suspended','revoked')),"
    " status_reason TEXT NOT NULL DEFAULT '',"
    " starts_at INTEGER NOT NULL DEFAULT 0, expires_at INTEGER NOT NULL DEFAULT 0," /* expires_at exclusive */
    " grace_days INTEGER NOT NULL DEFAULT 0, updates_until INTEGER NOT NULL DEFAULT 0,"
    " on_expiry TEXT NOT NULL DEFAULT 'block' CHECK (on_expiry IN ('block','keep_released')),"
    " period TEXT NOT NULL DEFAULT '',"                 /* ISO 8601: P1M, P1Y */
    " allowed_cidrs TEXT NOT NULL DEFAULT '[]',"        /* JSON array of strings */
    " upstream_credential_id TEXT NOT NULL DEFAULT ''," /* an upstream whose credentials replace the repository's own */
    " limits TEXT NOT NULL DEFAULT '{}', limit_action TEXT NOT NULL DEFAULT 'warn', quota_exceeded INTEGER NOT NULL DEFAULT 0,"
    " metadata TEXT NOT NULL DEFAULT '{}', environment TEXT NOT NULL DEFAULT '', order_number TEXT NOT NULL DEFAULT '',"
    " external_id TEXT NOT NULL DEFAULT '',"
    " key_hash TEXT NOT NULL DEFAULT '', key_prefix TEXT NOT NULL DEFAULT '',"
    " first_used_at INTEGER NOT NULL DEFAULT 0, last_used_at INTEGER NOT NULL DEFAULT 0, last_used_from TEXT NOT NULL DEFAULT '',"
    " created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, archived_at INTEGER NOT NULL DEFAULT 0,"
    " rev INTEGER NOT NULL DEFAULT 1) WITHOUT ROWID;\n"
    "CREATE UNIQUE INDEX licenses_name ON licenses(customer_id, name) WHERE archived_at=0;\n"
    "CREATE UNIQUE INDEX licenses_key ON licenses(key_hash) WHERE key_hash<>'';\n"
    "CREATE INDEX licenses_list ON licenses(vendor_id, created_at, id);\n"
    "CREATE INDEX licenses_customer ON licenses(customer_id, created_at, id);\n"
    "CREATE INDEX licenses_application ON licenses(application_id, created_at, id);\n"

    "CREATE TABLE credentials ("
    " id TEXT PRIMARY KEY, customer_id TEXT NOT NULL REFERENCES customers(id),"
    " license_id TEXT REFERENCES licenses(id)," /* NULL: every license of the customer counts */
    " name TEXT NOT NULL, hash TEXT NOT NULL UNIQUE, prefix TEXT NOT NULL,"
    " allowed_cidrs TEXT NOT NULL DEFAULT '[]',"
    " created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL DEFAULT 0, revoked_at INTEGER NOT NULL DEFAULT 0,"
    " rotated_to TEXT NOT NULL DEFAULT ''," /* the credential that replaces this one */
    " last_used_at INTEGER NOT NULL DEFAULT 0, last_used_from TEXT NOT NULL DEFAULT '') WITHOUT ROWID;\n"
    "CREATE INDEX credentials_customer ON credentials(customer_id, created_at, id);\n"
    "CREATE INDEX credentials_license ON credentials(license_id) WHERE license_id IS NOT NULL;\n"

    "CREATE TABLE grants ("
    " id TEXT PRIMARY KEY, license_id TEXT NOT NULL REFERENCES licenses(id),"
    " selector TEXT NOT NULL CHECK (selector IN ('exact','range','glob','channel','digest','all')),"
    " value TEXT NOT NULL, include_prerelease INTEGER NOT NULL DEFAULT 0,"
    " not_before INTEGER NOT NULL DEFAULT 0, not_after INTEGER NOT NULL DEFAULT 0," /* not_after exclusive */
    " on_move TEXT NOT NULL DEFAULT 'follow' CHECK (on_move IN ('follow','pin')),"
    " repositories TEXT NOT NULL DEFAULT '[]'," /* JSON array of public names; empty: all of the application's */
    " created_at INTEGER NOT NULL,"             /* granted_at of the entitlement */
    " note TEXT NOT NULL DEFAULT '') WITHOUT ROWID;\n"
    "CREATE INDEX grants_license ON grants(license_id, created_at, id);\n"
    "CREATE INDEX grants_pin ON grants(license_id) WHERE on_move='pin';\n" /* asked at every sighting of a tag */
    "CREATE TABLE grant_pins ("
    " grant_id TEXT NOT NULL REFERENCES grants(id) ON DELETE CASCADE,"
    " repository_id TEXT NOT NULL REFERENCES repositories(id) ON DELETE CASCADE,"
    " tag TEXT NOT NULL, digest TEXT NOT NULL, pinned_at INTEGER NOT NULL,"
    " PRIMARY KEY (grant_id, repository_id, tag)) WITHOUT ROWID;\n"

    "CREATE TABLE license_history ("
    " id INTEGER PRIMARY KEY AUTOINCREMENT, vendor_id TEXT NOT NULL, customer_id TEXT NOT NULL, license_id TEXT NOT NULL,"
    " at_ms INTEGER NOT NULL, event TEXT NOT NULL," /* license.created, license.suspended, … */
    " actor TEXT NOT NULL, from_status TEXT NOT NULL DEFAULT '', to_status TEXT NOT NULL DEFAULT '',"
    " reason TEXT NOT NULL DEFAULT '', data TEXT NOT NULL DEFAULT '{}');\n"
    "CREATE INDEX license_history_vendor ON license_history(vendor_id, id);\n"
    "CREATE INDEX license_history_license ON license_history(license_id, id);\n"

    /* The pull log. No foreign keys: it outlives what it names. */
    "CREATE TABLE pulls ("
    " id INTEGER PRIMARY KEY AUTOINCREMENT, event_id TEXT NOT NULL UNIQUE," /* request id: a batch may come twice */
    " at_ms INTEGER NOT NULL, vendor_id TEXT NOT NULL DEFAULT '', customer_id TEXT NOT NULL DEFAULT '',"
    " credential_id TEXT NOT NULL DEFAULT '', license_id TEXT NOT NULL DEFAULT '', application_id TEXT NOT NULL DEFAULT '',"
    " repository TEXT NOT NULL DEFAULT '', reference TEXT NOT NULL DEFAULT '', tag TEXT NOT NULL DEFAULT '',"
    " digest TEXT NOT NULL DEFAULT '', decision TEXT NOT NULL, reason TEXT NOT NULL,"
    " client TEXT NOT NULL DEFAULT '', agent TEXT NOT NULL DEFAULT '', proxy TEXT NOT NULL DEFAULT '',"
    " method TEXT NOT NULL DEFAULT '', bytes INTEGER NOT NULL DEFAULT 0);\n"
    "CREATE INDEX pulls_vendor ON pulls(vendor_id, at_ms, id);\n"
    "CREATE INDEX pulls_customer ON pulls(customer_id, at_ms, id);\n"
    "CREATE INDEX pulls_license ON pulls(license_id, at_ms, id);\n"

    /* Append-only; hash = HMAC(audit.key, prev || record). */
    "CREATE TABLE audit ("
    " seq INTEGER PRIMARY KEY AUTOINCREMENT, vendor_id TEXT NOT NULL, at_ms INTEGER NOT NULL,"
    " actor TEXT NOT NULL, address TEXT NOT NULL, request_id TEXT NOT NULL, action TEXT NOT NULL, object TEXT NOT NULL,"
    " outcome TEXT NOT NULL," /* "ok", or the problem's code */
    " before TEXT NOT NULL DEFAULT '', after TEXT NOT NULL DEFAULT '',"
    " prev_hash TEXT NOT NULL, hash TEXT NOT NULL);\n"
    "CREATE INDEX audit_vendor ON audit(vendor_id, seq);\n"
    "CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;\n"
    "CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;\n"

    "CREATE TABLE idempotency_keys ("
    " token_id TEXT NOT NULL, key TEXT NOT NULL, request_hash TEXT NOT NULL,"                          /* of method, path, body */
    " status INTEGER NOT NULL, location TEXT NOT NULL, etag TEXT NOT NULL, body_sealed TEXT NOT NULL," /* may hold a secret shown once */
    " created_at INTEGER NOT NULL, PRIMARY KEY (token_id, key)) WITHOUT ROWID;\n"
    "CREATE INDEX idempotency_keys_age ON idempotency_keys(created_at);\n"

    /* Which facts changed, in order; the projector carries them to Redis. The highest id is the epoch of the deployment.
     * AUTOINCREMENT: an id is never given twice, even when old rows were pruned. */
    "CREATE TABLE outbox ("
    " id INTEGER PRIMARY KEY AUTOINCREMENT, created_ms INTEGER NOT NULL, fact TEXT NOT NULL);\n"
    /* The newest epoch of every fact that ever was; is_gone: it exists no more. Written with the outbox row. */
    "CREATE TABLE fact_epochs ("
    " fact TEXT PRIMARY KEY, epoch INTEGER NOT NULL, bucket INTEGER NOT NULL, is_gone INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;\n"
    "CREATE INDEX fact_epochs_bucket ON fact_epochs(bucket, fact);\n"
    "CREATE INDEX fact_epochs_epoch ON fact_epochs(epoch);\n";

/* Terms: where a license came from, how it renews, what the clock and payments do with it. */
static const char MIGRATION_2[] =
    "ALTER TABLE licenses ADD COLUMN plan_id TEXT NOT NULL DEFAULT '';\n" /* of which it keeps its own copy of everything */
    "ALTER TABLE licenses ADD COLUMN source TEXT NOT NULL DEFAULT 'created';\n" /* created order request trial import transfer */
    "ALTER TABLE licenses ADD COLUMN issuer TEXT NOT NULL DEFAULT '';\n"        /* '': this deployment; else who issued an imported one */
    "ALTER TABLE licenses ADD COLUMN transaction_id TEXT NOT NULL DEFAULT '';\n"
    "ALTER TABLE licenses ADD COLUMN order_id TEXT NOT NULL DEFAULT '';\n"
    "ALTER TABLE licenses ADD COLUMN auto_renew INTEGER NOT NULL DEFAULT 0;\n"
    "ALTER TABLE licenses ADD COLUMN renew_needs_payment INTEGER NOT NULL DEFAULT 0;\n" /* auto_renew waits for a payment */
    "ALTER TABLE licenses ADD COLUMN cancel_at_period_end INTEGER NOT NULL DEFAULT 0;\n"
    "ALTER TABLE licenses ADD COLUMN anchor_day INTEGER NOT NULL DEFAULT 0;\n" /* of the month, in the vendor's zone; 0: that of expires_at */
    "ALTER TABLE licenses ADD COLUMN trial_days INTEGER NOT NULL DEFAULT 0;\n"
    "ALTER TABLE licenses ADD COLUMN starts_on TEXT NOT NULL DEFAULT '';\n" /* '', first_pull, activation: when trial_days begin */
    "ALTER TABLE licenses ADD COLUMN trial_started_at INTEGER NOT NULL DEFAULT 0;\n"
    "ALTER TABLE licenses ADD COLUMN requires_activation INTEGER NOT NULL DEFAULT 0;\n"
    "ALTER TABLE licenses ADD COLUMN grants_locked INTEGER NOT NULL DEFAULT 0;\n" /* grants can be added, never taken */
    "ALTER TABLE licenses ADD COLUMN features TEXT NOT NULL DEFAULT '{}';\n"      /* JSON object; goes into the license file */
    "ALTER TABLE licenses ADD COLUMN activated_at INTEGER NOT NULL DEFAULT 0;\n"
    "ALTER TABLE licenses ADD COLUMN revoked_at INTEGER NOT NULL DEFAULT 0;\n"
    "ALTER TABLE licenses ADD COLUMN payment_failed_at INTEGER NOT NULL DEFAULT 0;\n" /* the first failure since the last payment */
    "ALTER TABLE licenses ADD COLUMN payment_retries INTEGER NOT NULL DEFAULT 0;\n"
    "ALTER TABLE licenses ADD COLUMN wake_at INTEGER NOT NULL DEFAULT 0;\n" /* when the clock next does something with it; 0 never */
    "ALTER TABLE licenses ADD COLUMN change_at INTEGER NOT NULL DEFAULT 0;\n" /* the next scheduled change; 0 none */
    "CREATE INDEX licenses_wake ON licenses(wake_at) WHERE wake_at<>0;\n"
    "ALTER TABLE license_history ADD COLUMN request_id TEXT NOT NULL DEFAULT '';\n"
    "ALTER TABLE vendors ADD COLUMN grants_irrevocable INTEGER NOT NULL DEFAULT 0;\n" /* no grant of any of its licenses is ever taken */
    "ALTER TABLE grants ADD COLUMN excluded TEXT NOT NULL DEFAULT '[]';\n" /* JSON array: versions taken out of what it selects */

    /* What happened, for those who follow: GET /events, webhooks, mail. In the order of the commits. */
    "CREATE TABLE events ("
    " id INTEGER PRIMARY KEY AUTOINCREMENT, vendor_id TEXT NOT NULL, at_ms INTEGER NOT NULL, type TEXT NOT NULL,"
    " customer_id TEXT NOT NULL DEFAULT '', license_id TEXT NOT NULL DEFAULT '', object_id TEXT NOT NULL DEFAULT '',"
    " actor TEXT NOT NULL, data TEXT NOT NULL DEFAULT '{}');\n"
    "CREATE INDEX events_vendor ON events(vendor_id, id);\n"
    "CREATE INDEX events_license ON events(license_id, id) WHERE license_id<>'';\n";

/* What is sold and how it is bought: plans, changes to come, coupons, orders and their payments, what customers ask for. Amounts are
 * whole minor units of their currency. */
static const char MIGRATION_3[] =
    "CREATE TABLE plans ("
    " id TEXT PRIMARY KEY, vendor_id TEXT NOT NULL REFERENCES vendors(id), slug TEXT NOT NULL, name TEXT NOT NULL,"
    " description TEXT NOT NULL DEFAULT '', application_id TEXT NOT NULL REFERENCES applications(id),"
    " type TEXT NOT NULL CHECK (type IN ('trial','subscription','perpetual','development')), period TEXT NOT NULL DEFAULT '',"
    " grants TEXT NOT NULL DEFAULT '[]', limits TEXT NOT NULL DEFAULT '{}', features TEXT NOT NULL DEFAULT '{}'," /* JSON, as in the API */
    " grace_days INTEGER NOT NULL, trial_days INTEGER NOT NULL, trial_cap INTEGER NOT NULL, trial_cap_per_domain INTEGER NOT NULL,"
    " starts_on TEXT NOT NULL DEFAULT '', requires_activation INTEGER NOT NULL, updates_period TEXT NOT NULL DEFAULT '',"
    " amount INTEGER NOT NULL DEFAULT 0, user_amount INTEGER NOT NULL DEFAULT 0, currency TEXT NOT NULL DEFAULT ''," /* '': no price */
    " visible INTEGER NOT NULL, self_service INTEGER NOT NULL, allowed_email_domains TEXT NOT NULL DEFAULT '[]',"
    " denied_email_domains TEXT NOT NULL DEFAULT '[]', auto_renew INTEGER NOT NULL, manual_validation INTEGER NOT NULL,"
    " metadata TEXT NOT NULL DEFAULT '{}', created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,"
    " archived_at INTEGER NOT NULL DEFAULT 0, rev INTEGER NOT NULL DEFAULT 1) WITHOUT ROWID;\n"
    "CREATE UNIQUE INDEX plans_slug ON plans(vendor_id, slug) WHERE archived_at=0;\n"
    "CREATE INDEX plans_list ON plans(vendor_id, created_at, id);\n"

    /* What will be done with a license at a time; at most one is pending for it. */
    "CREATE TABLE scheduled_changes ("
    " id TEXT PRIMARY KEY, vendor_id TEXT NOT NULL, license_id TEXT NOT NULL REFERENCES licenses(id), plan_id TEXT NOT NULL,"
    " at INTEGER NOT NULL, status TEXT NOT NULL CHECK (status IN ('pending','applied','cancelled','failed')),"
    " keep_grants INTEGER NOT NULL DEFAULT 1, keep_limits INTEGER NOT NULL DEFAULT 1, reason TEXT NOT NULL DEFAULT ''," /* as it was asked for */
    " detail TEXT NOT NULL DEFAULT '', actor TEXT NOT NULL, created_at INTEGER NOT NULL, done_at INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;\n"
    "CREATE INDEX scheduled_changes_license ON scheduled_changes(license_id, created_at, id);\n"
    "CREATE UNIQUE INDEX scheduled_changes_pending ON scheduled_changes(license_id) WHERE status='pending';\n"
    /* Who gave a grant: only the plan's own go with the plan. */
    "ALTER TABLE grants ADD COLUMN origin TEXT NOT NULL DEFAULT 'hand' CHECK (origin IN ('plan','hand','coupon','import'));\n"
    /* Limits (with limit_action) and features as they were when the license was made of its plan, JSON, '' without a plan: what differs since
     * was changed by hand. */
    "ALTER TABLE licenses ADD COLUMN plan_limits TEXT NOT NULL DEFAULT '';\n"
    "ALTER TABLE licenses ADD COLUMN plan_features TEXT NOT NULL DEFAULT '';\n"

    "CREATE TABLE coupons ("
    " id TEXT PRIMARY KEY, vendor_id TEXT NOT NULL REFERENCES vendors(id), code TEXT NOT NULL," /* in capitals */
    " kind TEXT NOT NULL CHECK (kind IN ('percent','fixed','free_period','grant')), value TEXT NOT NULL," /* JSON, as in the API */
    " currency TEXT NOT NULL DEFAULT '', valid_from INTEGER NOT NULL DEFAULT 0, valid_until INTEGER NOT NULL DEFAULT 0," /* exclusive */
    " max_uses INTEGER NOT NULL DEFAULT 0, used INTEGER NOT NULL DEFAULT 0, once_per_customer INTEGER NOT NULL DEFAULT 0,"
    " plan_ids TEXT NOT NULL DEFAULT '[]', metadata TEXT NOT NULL DEFAULT '{}',"
    " created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, archived_at INTEGER NOT NULL DEFAULT 0,"
    " rev INTEGER NOT NULL DEFAULT 1) WITHOUT ROWID;\n"
    "CREATE UNIQUE INDEX coupons_code ON coupons(vendor_id, code) WHERE archived_at=0;\n"
    "CREATE INDEX coupons_list ON coupons(vendor_id, created_at, id);\n"

    "CREATE TABLE orders ("
    " id TEXT PRIMARY KEY, vendor_id TEXT NOT NULL REFERENCES vendors(id), number TEXT NOT NULL,"
    " customer_id TEXT NOT NULL REFERENCES customers(id), plan_id TEXT NOT NULL, license_id TEXT NOT NULL DEFAULT '',"
    " status TEXT NOT NULL CHECK (status IN ('pending','paid','approved','cancelled')), name TEXT NOT NULL,"
    " instances INTEGER NOT NULL, users INTEGER NOT NULL, period TEXT NOT NULL DEFAULT '', periods INTEGER NOT NULL,"
    " currency TEXT NOT NULL DEFAULT '', subtotal INTEGER NOT NULL, discount INTEGER NOT NULL,"
    " coupon_id TEXT NOT NULL DEFAULT '', coupon_code TEXT NOT NULL DEFAULT '', free_period TEXT NOT NULL DEFAULT '',"
    " snapshot TEXT NOT NULL," /* the plan and the coupon as they were, JSON */
    " transaction_id TEXT NOT NULL DEFAULT '', payment_ref TEXT NOT NULL DEFAULT '', billing TEXT NOT NULL DEFAULT '{}',"
    " terms_version TEXT NOT NULL DEFAULT '', terms_accepted_at INTEGER NOT NULL DEFAULT 0, metadata TEXT NOT NULL DEFAULT '{}',"
    " source TEXT NOT NULL, actor TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,"
    " paid_at INTEGER NOT NULL DEFAULT 0, approved_at INTEGER NOT NULL DEFAULT 0, cancelled_at INTEGER NOT NULL DEFAULT 0,"
    " rev INTEGER NOT NULL DEFAULT 1) WITHOUT ROWID;\n"
    "CREATE UNIQUE INDEX orders_number ON orders(number, vendor_id);\n"
    "CREATE INDEX orders_list ON orders(vendor_id, created_at, id);\n"
    "CREATE INDEX orders_customer ON orders(customer_id, created_at, id);\n"
    "CREATE INDEX orders_license ON orders(license_id) WHERE license_id<>'';\n"
    /* The last number given to an order of that year. Written with the order, so that none is left out. */
    "CREATE TABLE order_numbers (vendor_id TEXT NOT NULL, year INTEGER NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (vendor_id, year)) WITHOUT ROWID;\n"
    "CREATE TABLE coupon_uses ("
    " coupon_id TEXT NOT NULL REFERENCES coupons(id), order_id TEXT NOT NULL, customer_id TEXT NOT NULL, at INTEGER NOT NULL,"
    " PRIMARY KEY (coupon_id, order_id)) WITHOUT ROWID;\n"
    "CREATE INDEX coupon_uses_customer ON coupon_uses(coupon_id, customer_id);\n"
    /* What the payment system told, each once. */
    "CREATE TABLE payments ("
    " id INTEGER PRIMARY KEY AUTOINCREMENT, vendor_id TEXT NOT NULL, order_id TEXT NOT NULL REFERENCES orders(id),"
    " event TEXT NOT NULL CHECK (event IN ('payment_succeeded','payment_failed')), transaction_id TEXT NOT NULL,"
    " amount TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '', result TEXT NOT NULL, at INTEGER NOT NULL,"
    " happened_at INTEGER NOT NULL DEFAULT 0);\n" /* by the payment system's own account; 0: it said nothing */
    "CREATE UNIQUE INDEX payments_once ON payments(order_id, transaction_id, event);\n"
    "CREATE INDEX payments_transaction ON payments(vendor_id, transaction_id);\n"
    "CREATE TABLE hook_secrets ("
    " vendor_id TEXT PRIMARY KEY REFERENCES vendors(id), secret_sealed TEXT NOT NULL, created_at INTEGER NOT NULL) WITHOUT ROWID;\n"

    /* What a marketplace sold is known there by its subscription. */
    "ALTER TABLE licenses ADD COLUMN marketplace TEXT NOT NULL DEFAULT '';\n"
    "ALTER TABLE licenses ADD COLUMN external_subscription_id TEXT NOT NULL DEFAULT '';\n"
    "CREATE UNIQUE INDEX licenses_subscription ON licenses(vendor_id, marketplace, external_subscription_id)"
    " WHERE marketplace<>'' AND archived_at=0;\n"

    /* What customers ask for in the portal. */
    "CREATE TABLE requests ("
    " id TEXT PRIMARY KEY, vendor_id TEXT NOT NULL REFERENCES vendors(id), customer_id TEXT NOT NULL, license_id TEXT NOT NULL,"
    " kind TEXT NOT NULL CHECK (kind IN ('renew','change')), plan_id TEXT NOT NULL DEFAULT '', message TEXT NOT NULL DEFAULT '',"
    " status TEXT NOT NULL CHECK (status IN ('open','approved','rejected')), reason TEXT NOT NULL DEFAULT '',"
    " decided_by TEXT NOT NULL DEFAULT '', decided_at INTEGER NOT NULL DEFAULT 0,"
    " created_at INTEGER NOT NULL) WITHOUT ROWID;\n"
    "CREATE INDEX requests_list ON requests(vendor_id, created_at, id);\n"
    "CREATE INDEX requests_customer ON requests(customer_id, created_at, id);\n";

/* Webhooks, mail, the clock */
static const char MIGRATION_4[] =
    /* A license whose terms change is looked at in the next round, whoever changes them: 1 is a time that has come. What sets wake_at
     * itself is believed. */
    "CREATE TRIGGER licenses_wake_made AFTER INSERT ON licenses"
    " WHEN NEW.wake_at=0 AND (NEW.expires_at<>0 OR NEW.starts_at<>0 OR NEW.payment_failed_at<>0)"
    " BEGIN UPDATE licenses SET wake_at=1 WHERE id=NEW.id; END;\n"
    "CREATE TRIGGER licenses_wake_changed AFTER UPDATE OF status, starts_at, expires_at, grace_days, period, auto_renew, renew_needs_payment,"
    " cancel_at_period_end, anchor_day, payment_failed_at, archived_at ON licenses WHEN NEW.wake_at=OLD.wake_at"
    " BEGIN UPDATE licenses SET wake_at=1 WHERE id=NEW.id; END;\n"
    "UPDATE licenses SET wake_at=1 WHERE expires_at<>0 OR starts_at<>0 OR payment_failed_at<>0;\n"
    "CREATE INDEX licenses_inactive ON licenses(created_at) WHERE status='inactive' AND archived_at=0;\n"
    "ALTER TABLE credentials ADD COLUMN wake_at INTEGER NOT NULL DEFAULT 0;\n"
    "CREATE INDEX credentials_wake ON credentials(wake_at) WHERE wake_at<>0;\n"
    "CREATE TRIGGER credentials_wake_made AFTER INSERT ON credentials WHEN NEW.wake_at=0 AND NEW.expires_at<>0"
    " BEGIN UPDATE credentials SET wake_at=1 WHERE id=NEW.id; END;\n"
    "CREATE TRIGGER credentials_wake_changed AFTER UPDATE OF expires_at, revoked_at ON credentials WHEN NEW.wake_at=OLD.wake_at"
    " BEGIN UPDATE credentials SET wake_at=1 WHERE id=NEW.id; END;\n"
    "UPDATE credentials SET wake_at=1 WHERE expires_at<>0 AND revoked_at=0;\n"

    /* What the clock has told of already: of which license or credential, what, of which moment (expires_at, starts_at), how many days
     * before it. is_skipped: its time had passed unseen, and a later one was told instead. */
    "CREATE TABLE notices ("
    " subject_id TEXT NOT NULL, kind TEXT NOT NULL, at INTEGER NOT NULL, days INTEGER NOT NULL, is_skipped INTEGER NOT NULL DEFAULT 0,"
    " noted_at INTEGER NOT NULL, PRIMARY KEY (subject_id, kind, at, days)) WITHOUT ROWID;\n"
    /* What the clock could not do with a license or credential, and when it tries again. */
    "CREATE TABLE job_errors ("
    " subject_id TEXT PRIMARY KEY, vendor_id TEXT NOT NULL, error TEXT NOT NULL, attempts INTEGER NOT NULL, first_at INTEGER NOT NULL,"
    " next_at INTEGER NOT NULL) WITHOUT ROWID;\n"
    "CREATE INDEX job_errors_vendor ON job_errors(vendor_id, subject_id);\n"

    /* Denials of one customer for one reason within an hour: the first is an event, the others are counted. */
    "CREATE TABLE pull_denials ("
    " customer_id TEXT NOT NULL, reason TEXT NOT NULL, hour INTEGER NOT NULL, count INTEGER NOT NULL,"
    " PRIMARY KEY (customer_id, reason, hour)) WITHOUT ROWID;\n"
    "CREATE INDEX pull_denials_age ON pull_denials(hour);\n"
    "CREATE INDEX events_type ON events(vendor_id, type, id);\n"
    "CREATE INDEX events_customer ON events(customer_id, id) WHERE customer_id<>'';\n"

    "CREATE TABLE webhooks ("
    " id TEXT PRIMARY KEY, vendor_id TEXT NOT NULL REFERENCES vendors(id), url TEXT NOT NULL, events TEXT NOT NULL," /* JSON array of patterns */
    " secret_sealed TEXT NOT NULL,"                                                                                 /* aad "<id>|secret" */
    " description TEXT NOT NULL DEFAULT '', enabled INTEGER NOT NULL DEFAULT 1, disabled_reason TEXT NOT NULL DEFAULT '',"
    " after_event INTEGER NOT NULL,"           /* events up to this one were before its time */
    " failures INTEGER NOT NULL DEFAULT 0,"    /* one after another */
    " failing_since INTEGER NOT NULL DEFAULT 0, rest_until_ms INTEGER NOT NULL DEFAULT 0, last_success_at INTEGER NOT NULL DEFAULT 0,"
    " created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, rev INTEGER NOT NULL DEFAULT 1) WITHOUT ROWID;\n"
    "CREATE INDEX webhooks_vendor ON webhooks(vendor_id, created_at, id);\n"
    "CREATE TABLE webhook_deliveries ("
    " id TEXT PRIMARY KEY, webhook_id TEXT NOT NULL REFERENCES webhooks(id) ON DELETE CASCADE, event_id INTEGER NOT NULL,"
    " event_type TEXT NOT NULL, status TEXT NOT NULL DEFAULT 'pending' CHECK (status IN ('pending','delivered','failed')),"
    " attempts INTEGER NOT NULL DEFAULT 0, next_attempt_ms INTEGER NOT NULL, response_status INTEGER NOT NULL DEFAULT 0,"
    " error TEXT NOT NULL DEFAULT '', duration_ms INTEGER NOT NULL DEFAULT 0, created_at INTEGER NOT NULL," /* began to be tried: moves with a redelivery */
    " finished_at INTEGER NOT NULL DEFAULT 0, UNIQUE (webhook_id, event_id)) WITHOUT ROWID;\n"
    "CREATE INDEX webhook_deliveries_pending ON webhook_deliveries(webhook_id, event_id) WHERE status='pending';\n"
    "CREATE INDEX webhook_deliveries_failed ON webhook_deliveries(webhook_id) WHERE status='failed';\n"
    "CREATE INDEX webhook_deliveries_over ON webhook_deliveries(finished_at) WHERE finished_at<>0;\n"

    "CREATE TABLE mail_templates ("
    " vendor_id TEXT NOT NULL REFERENCES vendors(id), event TEXT NOT NULL, subject TEXT NOT NULL, body TEXT NOT NULL,"
    " enabled INTEGER NOT NULL DEFAULT 1, updated_at INTEGER NOT NULL, rev INTEGER NOT NULL DEFAULT 1,"
    " PRIMARY KEY (vendor_id, event)) WITHOUT ROWID;\n"
    "CREATE TABLE mails ("
    " id TEXT PRIMARY KEY, vendor_id TEXT NOT NULL, event_id INTEGER NOT NULL, event_type TEXT NOT NULL,"
    " customer_id TEXT NOT NULL DEFAULT '', license_id TEXT NOT NULL DEFAULT '', recipient TEXT NOT NULL,"
    " subject TEXT NOT NULL, body TEXT NOT NULL,"
    " status TEXT NOT NULL DEFAULT 'pending' CHECK (status IN ('pending','sent','failed')),"
    " attempts INTEGER NOT NULL DEFAULT 0, next_attempt_ms INTEGER NOT NULL, error TEXT NOT NULL DEFAULT '',"
    " created_at INTEGER NOT NULL, finished_at INTEGER NOT NULL DEFAULT 0, UNIQUE (event_id, recipient)) WITHOUT ROWID;\n"
    "CREATE INDEX mails_pending ON mails(next_attempt_ms) WHERE status='pending';\n"
    "CREATE INDEX mails_failed ON mails(vendor_id) WHERE status='failed';\n"
    "CREATE INDEX mails_list ON mails(vendor_id, event_id);\n"
    "CREATE INDEX mails_over ON mails(finished_at) WHERE finished_at<>0;\n";

/* License files, leases, bundles */
static const char MIGRATION_5[] =
    "ALTER TABLE licenses ADD COLUMN file_downloaded_at INTEGER NOT NULL DEFAULT 0;\n"
    "ALTER TABLE licenses ADD COLUMN last_validated_at INTEGER NOT NULL DEFAULT 0;\n"

    /* Which key of keys.path signs, and which signatures are still to be believed: the newest that is not retired signs; all but
     * compromised ones stand in the JWK set. The public half is kept here, so that the set is whole without the file. */
    "CREATE TABLE signing_keys ("
    " kid TEXT PRIMARY KEY, public_key TEXT NOT NULL," /* base64url */
    " created_at INTEGER NOT NULL, retired_at INTEGER NOT NULL DEFAULT 0, compromised INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;\n"

    /* License files that were given out. The serial ascends for each license and moves only when what the file says does, or when
     * another key signs; content is the hash of that. */
    "CREATE TABLE license_files ("
    " license_id TEXT NOT NULL REFERENCES licenses(id), serial INTEGER NOT NULL, content TEXT NOT NULL, kid TEXT NOT NULL,"
    " key_prefix TEXT NOT NULL, body TEXT NOT NULL, issued_at INTEGER NOT NULL,"
    " revoked_at INTEGER NOT NULL DEFAULT 0, revoked_reason TEXT NOT NULL DEFAULT '',"
    " downloads INTEGER NOT NULL DEFAULT 0, downloaded_at INTEGER NOT NULL DEFAULT 0, downloaded_by TEXT NOT NULL DEFAULT '',"
    " PRIMARY KEY (license_id, serial)) WITHOUT ROWID;\n"

    /* What revocation lists say, in order; kept by triggers, so that every way to end a license or its key is on the list. serial 0:
     * every file of the license, else this one and those before it. The highest id of a vendor is its list's number. The list is public: no text
     * of a person stands in it. */
    "CREATE TABLE revocations ("
    " id INTEGER PRIMARY KEY AUTOINCREMENT, vendor_id TEXT NOT NULL, license_id TEXT NOT NULL, serial INTEGER NOT NULL,"
    " key_prefix TEXT NOT NULL, revoked_at INTEGER NOT NULL, reason TEXT NOT NULL);\n"
    "CREATE INDEX revocations_vendor ON revocations(vendor_id, id);\n"
    "CREATE TRIGGER licenses_revoked AFTER UPDATE OF status ON licenses WHEN NEW.status='revoked' AND OLD.status<>'revoked' BEGIN"
    " INSERT INTO revocations (vendor_id, license_id, serial, key_prefix, revoked_at, reason)"
    "  VALUES (OLD.vendor_id, OLD.id, 0, OLD.key_prefix, NEW.updated_at, 'revoked');"
    " UPDATE license_files SET revoked_at=NEW.updated_at, revoked_reason='revoked' WHERE license_id=OLD.id AND revoked_at=0; END;\n"
    "CREATE TRIGGER licenses_archived AFTER UPDATE OF archived_at ON licenses"
    " WHEN NEW.archived_at<>0 AND OLD.archived_at=0 AND OLD.status<>'revoked' BEGIN"
    " INSERT INTO revocations (vendor_id, license_id, serial, key_prefix, revoked_at, reason)"
    "  VALUES (OLD.vendor_id, OLD.id, 0, OLD.key_prefix, NEW.archived_at, 'deleted');"
    " UPDATE license_files SET revoked_at=NEW.archived_at, revoked_reason='deleted' WHERE license_id=OLD.id AND revoked_at=0; END;\n"
    "CREATE TRIGGER licenses_rekeyed AFTER UPDATE OF key_hash, customer_id, vendor_id ON licenses"
    " WHEN OLD.key_hash<>'' AND (NEW.key_hash<>OLD.key_hash OR NEW.customer_id<>OLD.customer_id OR NEW.vendor_id<>OLD.vendor_id) BEGIN"
    " INSERT INTO revocations (vendor_id, license_id, serial, key_prefix, revoked_at, reason)"
    "  SELECT OLD.vendor_id, OLD.id, max(serial), OLD.key_prefix, NEW.updated_at, 'superseded' FROM license_files"
    "  WHERE license_id=OLD.id HAVING max(serial) IS NOT NULL;"
    " UPDATE license_files SET revoked_at=NEW.updated_at, revoked_reason='superseded' WHERE license_id=OLD.id AND revoked_at=0; END;\n"

    /* Where a license is used: by what an application says at validation, by what pulls. */
    "CREATE TABLE license_instances ("
    " license_id TEXT NOT NULL REFERENCES licenses(id), fingerprint TEXT NOT NULL,"
    " kind TEXT NOT NULL CHECK (kind IN ('pull','validate')),"
    " address TEXT NOT NULL DEFAULT '', agent TEXT NOT NULL DEFAULT ''," /* pull: the client's name; validate: host and version */
    " first_seen_at INTEGER NOT NULL, last_seen_at INTEGER NOT NULL, revoked_at INTEGER NOT NULL DEFAULT 0,"
    " PRIMARY KEY (license_id, fingerprint)) WITHOUT ROWID;\n"
    "CREATE INDEX license_instances_seen ON license_instances(license_id, last_seen_at);\n";

/* What is used of a license, by window; see usage.h. */
static const char MIGRATION_6[] =
    "ALTER TABLE licenses ADD COLUMN usage_from INTEGER NOT NULL DEFAULT 0;\n"  /* the present window; 0: nothing was counted yet */
    "ALTER TABLE licenses ADD COLUMN usage_until INTEGER NOT NULL DEFAULT 0;\n" /* 0: it has no end */
    "ALTER TABLE licenses ADD COLUMN usage_passed INTEGER NOT NULL DEFAULT 0;\n" /* bits: limits whose passing was told in this window */
    "ALTER TABLE licenses ADD COLUMN quota_until INTEGER NOT NULL DEFAULT 0;\n"  /* when quota_exceeded is over; 0: not by the clock */
    "ALTER TABLE customers ADD COLUMN requests_per_second INTEGER NOT NULL DEFAULT 0;\n" /* 0: limits.requests_per_customer */
    "CREATE TABLE license_usage ("
    " license_id TEXT NOT NULL, from_at INTEGER NOT NULL, until_at INTEGER NOT NULL,"
    " pulls INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0, denied INTEGER NOT NULL DEFAULT 0,"
    " PRIMARY KEY (license_id, from_at)) WITHOUT ROWID;\n"
    "CREATE TABLE usage_reports (id TEXT PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;\n"
    "CREATE INDEX usage_reports_age ON usage_reports(at);\n"
    "CREATE INDEX license_instances_silent ON license_instances(last_seen_at) WHERE kind='pull' AND revoked_at=0;\n";

/* People, sessions, rights */
static const char MIGRATION_7[] =
    /* The bootstrap token is the operator's; a person's token (user_id) dies with him and never reaches further than he does. */
    "CREATE TABLE api_tokens_7 ("
    " id TEXT PRIMARY KEY, vendor_id TEXT NOT NULL REFERENCES vendors(id), name TEXT NOT NULL,"
    " role TEXT NOT NULL CHECK (role IN ('operator','owner','admin','license_manager','support','viewer')),"
    " scopes TEXT NOT NULL DEFAULT ''," /* separated by blanks; '': all that the role may */
    " user_id TEXT NOT NULL DEFAULT '',"
    " hash TEXT NOT NULL UNIQUE, prefix TEXT NOT NULL, is_bootstrap INTEGER NOT NULL DEFAULT 0,"
    " created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL DEFAULT 0, revoked_at INTEGER NOT NULL DEFAULT 0,"
    " last_used_at INTEGER NOT NULL DEFAULT 0, last_used_from TEXT NOT NULL DEFAULT '') WITHOUT ROWID;\n"
    "INSERT INTO api_tokens_7 (id, vendor_id, name, role, hash, prefix, is_bootstrap, created_at, expires_at, revoked_at, last_used_at,"
    " last_used_from) SELECT id, vendor_id, name, CASE WHEN is_bootstrap=1 THEN 'operator' ELSE role END, hash, prefix, is_bootstrap,"
    " created_at, expires_at, revoked_at, last_used_at, last_used_from FROM api_tokens;\n"
    "DROP TABLE api_tokens;\n"
    "ALTER TABLE api_tokens_7 RENAME TO api_tokens;\n"
    "CREATE INDEX api_tokens_vendor ON api_tokens(vendor_id, created_at, id);\n"
    "CREATE INDEX api_tokens_user ON api_tokens(user_id) WHERE user_id<>'';\n"

    /* A person of the vendor, or of one of its customers; who was removed keeps a row without secrets. */
    "CREATE TABLE users ("
    " id TEXT PRIMARY KEY, vendor_id TEXT NOT NULL REFERENCES vendors(id), customer_id TEXT NOT NULL DEFAULT '',"
    " is_customers INTEGER NOT NULL," /* customer_id<>'' */
    " email TEXT NOT NULL, name TEXT NOT NULL DEFAULT '',"
    " role TEXT NOT NULL CHECK (role IN ('operator','owner','admin','license_manager','support','viewer','customer_admin','customer_viewer')),"
    " password_hash TEXT NOT NULL DEFAULT '', password_at INTEGER NOT NULL DEFAULT 0," /* '': invited */
    " disabled INTEGER NOT NULL DEFAULT 0,"
    " totp_sealed TEXT NOT NULL DEFAULT ''," /* keyring_seal, aad "<id>|totp" */
    " totp_enabled_at INTEGER NOT NULL DEFAULT 0, totp_step INTEGER NOT NULL DEFAULT 0," /* the last step that was used */
    " invite_hash TEXT NOT NULL DEFAULT '', invite_expires_at INTEGER NOT NULL DEFAULT 0,"
    " last_at INTEGER NOT NULL DEFAULT 0, last_from TEXT NOT NULL DEFAULT '',"
    " created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, removed_at INTEGER NOT NULL DEFAULT 0,"
    " rev INTEGER NOT NULL DEFAULT 1, CHECK (is_customers=(customer_id<>'')), CHECK (is_customers=(role LIKE 'customer_%'))) WITHOUT ROWID;\n"
    "CREATE UNIQUE INDEX users_email ON users(vendor_id, is_customers, email) WHERE removed_at=0;\n"
    "CREATE UNIQUE INDEX users_invite ON users(invite_hash) WHERE invite_hash<>'';\n"
    "CREATE INDEX users_list ON users(vendor_id, customer_id, created_at, id);\n"
    "CREATE INDEX users_sign_in ON users(email, is_customers);\n"
    "CREATE INDEX users_customer ON users(customer_id) WHERE customer_id<>'';\n"
    "CREATE TABLE sessions ("
    " id TEXT PRIMARY KEY, user_id TEXT NOT NULL REFERENCES users(id), hash TEXT NOT NULL UNIQUE, address TEXT NOT NULL,"
    " created_at INTEGER NOT NULL, used_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, revoked_at INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;\n"
    "CREATE INDEX sessions_user ON sessions(user_id, created_at, id);\n"
    "CREATE TABLE user_recovery ("
    " user_id TEXT NOT NULL REFERENCES users(id), hash TEXT NOT NULL, PRIMARY KEY (user_id, hash)) WITHOUT ROWID;\n"

    /* form: of the text that is hashed. vendor_prev: hash of the vendor's row before, as prev_hash is of the row before of all. */
    "ALTER TABLE audit ADD COLUMN form INTEGER NOT NULL DEFAULT 1;\n"
    "ALTER TABLE audit ADD COLUMN actor_name TEXT NOT NULL DEFAULT '';\n"
    "ALTER TABLE audit ADD COLUMN vendor_prev TEXT NOT NULL DEFAULT '';\n"

    "ALTER TABLE vendors ADD COLUMN branding TEXT NOT NULL DEFAULT '{}';\n"           /* JSON object, for the portal */
    "ALTER TABLE vendors ADD COLUMN suspended_at INTEGER NOT NULL DEFAULT 0;\n"
    "ALTER TABLE vendors ADD COLUMN suspended_reason TEXT NOT NULL DEFAULT '';\n";

/* Finding, import, transfers */
static const char MIGRATION_8[] =
    /* What lists are sorted by. "Never" comes after every date; names are compared without the case of ASCII letters. Written by triggers:
     * an index of a generated column is never enough by itself, SQLite reads the row all the same. */
    "ALTER TABLE licenses ADD COLUMN expires_key INTEGER NOT NULL DEFAULT 0;\n"
    "ALTER TABLE licenses ADD COLUMN name_key TEXT NOT NULL DEFAULT '';\n"
    "ALTER TABLE customers ADD COLUMN name_key TEXT NOT NULL DEFAULT '';\n"
    "UPDATE licenses SET expires_key=CASE expires_at WHEN 0 THEN 9223372036854775807 ELSE expires_at END, name_key=lower(name);\n"
    "UPDATE customers SET name_key=lower(name);\n"
    "CREATE TRIGGER licenses_keys_new AFTER INSERT ON licenses BEGIN UPDATE licenses SET name_key=lower(new.name),"
    " expires_key=CASE new.expires_at WHEN 0 THEN 9223372036854775807 ELSE new.expires_at END WHERE id=new.id; END;\n"
    "CREATE TRIGGER licenses_keys AFTER UPDATE OF name, expires_at ON licenses WHEN old.name<>new.name OR old.expires_at<>new.expires_at BEGIN"
    " UPDATE licenses SET name_key=lower(new.name),"
    " expires_key=CASE new.expires_at WHEN 0 THEN 9223372036854775807 ELSE new.expires_at END WHERE id=new.id; END;\n"
    "CREATE TRIGGER customers_keys_new AFTER INSERT ON customers BEGIN UPDATE customers SET name_key=lower(new.name) WHERE id=new.id; END;\n"
    "CREATE TRIGGER customers_keys AFTER UPDATE OF name ON customers WHEN old.name<>new.name BEGIN"
    " UPDATE customers SET name_key=lower(new.name) WHERE id=new.id; END;\n"
    /* admin/licensequery.c names these: each sort has one, with what is filtered by most, so that a walk along it reads no row; and each
     * filter that may be rare. */
    "DROP INDEX licenses_list;\n"
    /* The same as before, with what says that a row is live and whose: it is counted without a look at the row. */
    "DROP INDEX licenses_customer;\n"
    "DROP INDEX licenses_application;\n"
    "CREATE INDEX licenses_customer ON licenses(customer_id, created_at, id, archived_at, vendor_id);\n"
    "CREATE INDEX licenses_application ON licenses(application_id, created_at, id, archived_at, vendor_id);\n"
    "CREATE INDEX licenses_by_created ON licenses(vendor_id, created_at, id, archived_at, status, starts_at, grace_days, payment_failed_at, expires_at,"
    " application_id, type, auto_renew, environment) WHERE archived_at=0;\n"
    "CREATE INDEX licenses_by_updated ON licenses(vendor_id, updated_at, id, archived_at, status, starts_at, grace_days, payment_failed_at, expires_at,"
    " application_id, type, auto_renew, environment) WHERE archived_at=0;\n"
    "CREATE INDEX licenses_by_expiry ON licenses(vendor_id, expires_key, id, archived_at, status, starts_at, grace_days, payment_failed_at, expires_at,"
    " application_id, type, auto_renew, environment) WHERE archived_at=0;\n"
    "CREATE INDEX licenses_by_name ON licenses(vendor_id, name_key, id, archived_at, status, starts_at, grace_days, payment_failed_at, expires_at,"
    " application_id, type, auto_renew, environment) WHERE archived_at=0;\n"
    "CREATE INDEX licenses_by_status ON licenses(vendor_id, status, expires_at, id, starts_at, grace_days, payment_failed_at,"
    " archived_at) WHERE archived_at=0;\n"
    "CREATE INDEX licenses_by_key ON licenses(vendor_id, key_prefix, id, archived_at) WHERE archived_at=0;\n"
    "CREATE INDEX licenses_by_order ON licenses(vendor_id, order_number, id, archived_at) WHERE archived_at=0 AND order_number<>'';\n"
    "CREATE INDEX licenses_by_transaction ON licenses(vendor_id, transaction_id, id, archived_at) WHERE archived_at=0 AND transaction_id<>'';\n"
    "CREATE INDEX licenses_by_external ON licenses(vendor_id, external_id, id, archived_at) WHERE archived_at=0 AND external_id<>'';\n"
    "CREATE INDEX licenses_by_plan ON licenses(vendor_id, plan_id, id, archived_at) WHERE archived_at=0 AND plan_id<>'';\n"
    "CREATE INDEX licenses_by_environment ON licenses(vendor_id, environment, id, archived_at) WHERE archived_at=0 AND environment<>'';\n"
    "CREATE INDEX licenses_by_issuer ON licenses(vendor_id, issuer, id, archived_at) WHERE archived_at=0 AND issuer<>'';\n"
    "CREATE INDEX licenses_by_type ON licenses(vendor_id, type, id, archived_at) WHERE archived_at=0 AND type<>'paid';\n"
    "CREATE INDEX licenses_by_source ON licenses(vendor_id, source, id, archived_at) WHERE archived_at=0 AND source<>'created';\n"
    "CREATE INDEX licenses_archived ON licenses(vendor_id, created_at, id, archived_at) WHERE archived_at<>0;\n"
    "CREATE INDEX customers_by_name ON customers(vendor_id, name_key, id, archived_at) WHERE archived_at=0;\n"
    "CREATE INDEX customers_by_updated ON customers(vendor_id, updated_at, id, archived_at) WHERE archived_at=0;\n"
    "CREATE INDEX customers_by_email ON customers(vendor_id, lower(email)) WHERE archived_at=0 AND email<>'';\n"
    "CREATE INDEX customers_by_external ON customers(vendor_id, external_id) WHERE archived_at=0 AND external_id<>'';\n"
    "DROP INDEX customers_list;\n"
    "CREATE INDEX customers_by_created ON customers(vendor_id, created_at, id, archived_at) WHERE archived_at=0;\n"
    "ALTER TABLE credentials ADD COLUMN vendor_id TEXT NOT NULL DEFAULT '';\n" /* of its customer; the trigger writes it */
    "UPDATE credentials SET vendor_id=(SELECT vendor_id FROM customers u WHERE u.id=customer_id);\n"
    "CREATE TRIGGER credentials_find_new AFTER INSERT ON credentials BEGIN"
    " UPDATE credentials SET vendor_id=(SELECT vendor_id FROM customers u WHERE u.id=new.customer_id) WHERE id=new.id; END;\n"
    "CREATE INDEX credentials_by_created ON credentials(vendor_id, created_at, id);\n"
    "CREATE INDEX credentials_by_expiry ON credentials(vendor_id, expires_at, id);\n"
    "CREATE INDEX credentials_by_prefix ON credentials(vendor_id, prefix);\n"

    /* Scalars of metadata by name, kept by the triggers below. */
    "CREATE TABLE license_metadata (vendor_id TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, license_id TEXT NOT NULL,"
    " PRIMARY KEY (vendor_id, key, value, license_id)) WITHOUT ROWID;\n"
    "CREATE INDEX license_metadata_license ON license_metadata(license_id);\n"
    "CREATE TABLE customer_metadata (vendor_id TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, customer_id TEXT NOT NULL,"
    " PRIMARY KEY (vendor_id, key, value, customer_id)) WITHOUT ROWID;\n"
    "CREATE INDEX customer_metadata_customer ON customer_metadata(customer_id);\n"
    /* Networks of allowed_cidrs: 32 hex digits of the first address, '/', three digits of its length. licensequery_index() writes it. */
    "CREATE TABLE license_cidrs (vendor_id TEXT NOT NULL, net TEXT NOT NULL, license_id TEXT NOT NULL,"
    " PRIMARY KEY (vendor_id, net, license_id)) WITHOUT ROWID;\n"
    "CREATE INDEX license_cidrs_license ON license_cidrs(license_id);\n"

    /* Full text: the words are in the FTS tables, the texts they were made of beside them. Numbers ascend as the objects are made. */
    "CREATE TABLE license_docs (n INTEGER PRIMARY KEY AUTOINCREMENT, license_id TEXT NOT NULL UNIQUE, vendor TEXT NOT NULL, name TEXT NOT NULL,"
    " customer TEXT NOT NULL, environment TEXT NOT NULL);\n"
    "CREATE VIRTUAL TABLE license_text USING fts5(vendor, name, customer, environment, content='license_docs', content_rowid='n',"
    " columnsize=0, prefix='2 3', tokenize='unicode61 remove_diacritics 2');\n"
    "CREATE TABLE customer_docs (n INTEGER PRIMARY KEY AUTOINCREMENT, customer_id TEXT NOT NULL UNIQUE, vendor TEXT NOT NULL, name TEXT NOT NULL,"
    " slug TEXT NOT NULL, email TEXT NOT NULL, external_id TEXT NOT NULL);\n"
    "CREATE VIRTUAL TABLE customer_text USING fts5(vendor, name, slug, email, external_id, content='customer_docs', content_rowid='n',"
    " columnsize=0, prefix='2 3', tokenize='unicode61 remove_diacritics 2');\n"
    /* What FTS has to be told: finder_flush() does before each commit. A trigger may not, for the schema of the file is not trusted. */
    "CREATE TABLE text_queue (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, is_gone INTEGER NOT NULL, n INTEGER NOT NULL, a TEXT NOT NULL,"
    " b TEXT NOT NULL, c TEXT NOT NULL, d TEXT NOT NULL, e TEXT NOT NULL);\n"
    "CREATE TRIGGER license_docs_new AFTER INSERT ON license_docs BEGIN"
    " INSERT INTO text_queue (kind, is_gone, n, a, b, c, d, e) VALUES ('l', 0, new.n, new.vendor, new.name, new.customer, new.environment, ''); END;\n"
    "CREATE TRIGGER license_docs_gone AFTER DELETE ON license_docs BEGIN"
    " INSERT INTO text_queue (kind, is_gone, n, a, b, c, d, e) VALUES ('l', 1, old.n, old.vendor, old.name, old.customer, old.environment, ''); END;\n"
    "CREATE TRIGGER license_docs_changed AFTER UPDATE ON license_docs BEGIN"
    " INSERT INTO text_queue (kind, is_gone, n, a, b, c, d, e) VALUES ('l', 1, old.n, old.vendor, old.name, old.customer, old.environment, '');"
    " INSERT INTO text_queue (kind, is_gone, n, a, b, c, d, e) VALUES ('l', 0, new.n, new.vendor, new.name, new.customer, new.environment, ''); END;\n"
    "CREATE TRIGGER customer_docs_new AFTER INSERT ON customer_docs BEGIN"
    " INSERT INTO text_queue (kind, is_gone, n, a, b, c, d, e) VALUES ('c', 0, new.n, new.vendor, new.name, new.slug, new.email, new.external_id); END;\n"
    "CREATE TRIGGER customer_docs_gone AFTER DELETE ON customer_docs BEGIN"
    " INSERT INTO text_queue (kind, is_gone, n, a, b, c, d, e) VALUES ('c', 1, old.n, old.vendor, old.name, old.slug, old.email, old.external_id); END;\n"
    "CREATE TRIGGER customer_docs_changed AFTER UPDATE ON customer_docs BEGIN"
    " INSERT INTO text_queue (kind, is_gone, n, a, b, c, d, e) VALUES ('c', 1, old.n, old.vendor, old.name, old.slug, old.email, old.external_id);"
    " INSERT INTO text_queue (kind, is_gone, n, a, b, c, d, e) VALUES ('c', 0, new.n, new.vendor, new.name, new.slug, new.email, new.external_id); END;\n"

    "CREATE TRIGGER licenses_find_new AFTER INSERT ON licenses BEGIN"
    " INSERT INTO license_docs (license_id, vendor, name, customer, environment) VALUES (new.id, substr(new.vendor_id, 5), new.name,"
    "  COALESCE((SELECT name||' '||slug FROM customers WHERE id=new.customer_id),''), new.environment);"
    " INSERT OR IGNORE INTO license_metadata (vendor_id, key, value, license_id)"
    "  SELECT new.vendor_id, key, substr(CASE type WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' ELSE value END, 1, 200), new.id"
    "  FROM json_each(new.metadata) WHERE type IN ('text','integer','real','true','false'); END;\n"
    "CREATE TRIGGER licenses_find_text AFTER UPDATE OF name, environment, customer_id, vendor_id ON licenses"
    " WHEN old.name<>new.name OR old.environment<>new.environment OR old.customer_id<>new.customer_id OR old.vendor_id<>new.vendor_id BEGIN"
    " UPDATE license_docs SET vendor=substr(new.vendor_id, 5), name=new.name, environment=new.environment,"
    "  customer=COALESCE((SELECT name||' '||slug FROM customers WHERE id=new.customer_id),'') WHERE license_id=new.id; END;\n"
    "CREATE TRIGGER licenses_find_metadata AFTER UPDATE OF metadata, vendor_id ON licenses"
    " WHEN old.metadata<>new.metadata OR old.vendor_id<>new.vendor_id BEGIN"
    " DELETE FROM license_metadata WHERE license_id=new.id;"
    " INSERT OR IGNORE INTO license_metadata (vendor_id, key, value, license_id)"
    "  SELECT new.vendor_id, key, substr(CASE type WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' ELSE value END, 1, 200), new.id"
    "  FROM json_each(new.metadata) WHERE type IN ('text','integer','real','true','false'); END;\n"
    "CREATE TRIGGER licenses_find_gone AFTER DELETE ON licenses BEGIN"
    " DELETE FROM license_docs WHERE license_id=old.id; DELETE FROM license_metadata WHERE license_id=old.id;"
    " DELETE FROM license_cidrs WHERE license_id=old.id; END;\n"
    "CREATE TRIGGER customers_find_new AFTER INSERT ON customers BEGIN"
    " INSERT INTO customer_docs (customer_id, vendor, name, slug, email, external_id)"
    "  VALUES (new.id, substr(new.vendor_id, 5), new.name, new.slug, new.email, new.external_id);"
    " INSERT OR IGNORE INTO customer_metadata (vendor_id, key, value, customer_id)"
    "  SELECT new.vendor_id, key, substr(CASE type WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' ELSE value END, 1, 200), new.id"
    "  FROM json_each(new.metadata) WHERE type IN ('text','integer','real','true','false'); END;\n"
    "CREATE TRIGGER customers_find_text AFTER UPDATE OF name, slug, email, external_id ON customers"
    " WHEN old.name<>new.name OR old.slug<>new.slug OR old.email<>new.email OR old.external_id<>new.external_id BEGIN"
    " UPDATE customer_docs SET name=new.name, slug=new.slug, email=new.email, external_id=new.external_id WHERE customer_id=new.id; END;\n"
    "CREATE TRIGGER customers_find_licenses AFTER UPDATE OF name, slug ON customers WHEN old.name<>new.name OR old.slug<>new.slug BEGIN"
    " UPDATE license_docs SET customer=new.name||' '||new.slug WHERE license_id IN (SELECT id FROM licenses WHERE customer_id=new.id); END;\n"
    "CREATE TRIGGER customers_find_metadata AFTER UPDATE OF metadata ON customers WHEN old.metadata<>new.metadata BEGIN"
    " DELETE FROM customer_metadata WHERE customer_id=new.id;"
    " INSERT OR IGNORE INTO customer_metadata (vendor_id, key, value, customer_id)"
    "  SELECT new.vendor_id, key, substr(CASE type WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' ELSE value END, 1, 200), new.id"
    "  FROM json_each(new.metadata) WHERE type IN ('text','integer','real','true','false'); END;\n"
    "CREATE TRIGGER customers_find_gone AFTER DELETE ON customers BEGIN"
    " DELETE FROM customer_docs WHERE customer_id=old.id; DELETE FROM customer_metadata WHERE customer_id=old.id; END;\n"
    /* What stood here before. */
    "INSERT INTO customer_docs (customer_id, vendor, name, slug, email, external_id)"
    " SELECT id, substr(vendor_id, 5), name, slug, email, external_id FROM customers ORDER BY created_at, id;\n"
    "INSERT INTO license_docs (license_id, vendor, name, customer, environment)"
    " SELECT l.id, substr(l.vendor_id, 5), l.name, c.name||' '||c.slug, l.environment FROM licenses l JOIN customers c ON c.id=l.customer_id"
    " ORDER BY l.created_at, l.id;\n"
    "INSERT OR IGNORE INTO license_metadata (vendor_id, key, value, license_id)"
    " SELECT o.vendor_id, j.key, substr(CASE j.type WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' ELSE j.value END, 1, 200), o.id"
    " FROM licenses o, json_each(o.metadata) j WHERE j.type IN ('text','integer','real','true','false');\n"
    "INSERT OR IGNORE INTO customer_metadata (vendor_id, key, value, customer_id)"
    " SELECT o.vendor_id, j.key, substr(CASE j.type WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' ELSE j.value END, 1, 200), o.id"
    " FROM customers o, json_each(o.metadata) j WHERE j.type IN ('text','integer','real','true','false');\n"

    /* Offers of a license to another customer, or to another vendor. The secret is known to who made the offer; its hash stands here. */
    "CREATE TABLE transfers ("
    " id TEXT PRIMARY KEY, license_id TEXT NOT NULL, license_name TEXT NOT NULL,"
    " vendor_id TEXT NOT NULL, customer_id TEXT NOT NULL,"         /* of whom it is */
    " to_vendor_id TEXT NOT NULL, to_customer_id TEXT NOT NULL,"   /* '': the receiving vendor says at the acceptance */
    " secret_hash TEXT NOT NULL, failures INTEGER NOT NULL DEFAULT 0,"
    " status TEXT NOT NULL CHECK (status IN ('pending','accepted','rejected','cancelled','expired','dead')),"
    " created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, ended_at INTEGER NOT NULL DEFAULT 0,"
    " created_by TEXT NOT NULL, ended_by TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '') WITHOUT ROWID;\n"
    "CREATE UNIQUE INDEX transfers_license ON transfers(license_id) WHERE status='pending';\n"
    "CREATE INDEX transfers_from ON transfers(vendor_id, created_at, id);\n"
    "CREATE INDEX transfers_to ON transfers(to_vendor_id, created_at, id);\n"
    "CREATE INDEX transfers_to_customer ON transfers(to_customer_id, created_at, id) WHERE to_customer_id<>'';\n"
    "CREATE INDEX transfers_due ON transfers(expires_at) WHERE status='pending';\n";

/* Retention. events_pruned: the highest id of the vendor's events that are gone. */
static const char MIGRATION_9[] =
    "ALTER TABLE vendors ADD COLUMN events_pruned INTEGER NOT NULL DEFAULT 0;\n"
    "CREATE TRIGGER events_gone AFTER DELETE ON events BEGIN"
    " UPDATE vendors SET events_pruned=max(events_pruned, OLD.id) WHERE id=OLD.vendor_id; END;\n"
    "CREATE INDEX events_age ON events(at_ms, id);\n"
    "CREATE INDEX webhook_deliveries_event ON webhook_deliveries(event_id);\n"
    "CREATE INDEX notices_age ON notices(noted_at);\n"
    "CREATE INDEX license_usage_over ON license_usage(until_at) WHERE until_at<>0;\n"
    "CREATE INDEX license_instances_over ON license_instances(last_seen_at) WHERE revoked_at<>0 OR kind='validate';\n"
    "CREATE INDEX sessions_age ON sessions(created_at);\n"
    /* Who has to wait after failed sign-ins, see failures.h. key: 32 hex digits. */
    "CREATE TABLE sign_in_rests ("
    " kind TEXT NOT NULL, key TEXT NOT NULL, until_at INTEGER NOT NULL, total INTEGER NOT NULL, strikes INTEGER NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID;\n"
    "CREATE INDEX sign_in_rests_over ON sign_in_rests(until_at);\n"
    /* 1: body is of keyring_seal, aad "<id>|body", and '' once the mail is over. */
    "ALTER TABLE mails ADD COLUMN is_sealed INTEGER NOT NULL DEFAULT 0;\n";

const struct store_migration SCHEMA_MIGRATIONS[] = {
    {1, MIGRATION_1}, {2, MIGRATION_2}, {3, MIGRATION_3}, {4, MIGRATION_4},
    {5, MIGRATION_5}, {6, MIGRATION_6}, {7, MIGRATION_7}, {8, MIGRATION_8},
    {9, MIGRATION_9},
};
const size_t SCHEMA_MIGRATIONS_N = sizeof SCHEMA_MIGRATIONS / sizeof SCHEMA_MIGRATIONS[0];
