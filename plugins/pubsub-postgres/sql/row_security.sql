-- One host's credentials reach one host's rows. Whoever is no member of cloud_host is not concerned: what they may do
-- is up to their grants, as before. The tables' owner and superusers are never concerned.
CREATE TABLE IF NOT EXISTS cloud.host_credentials (
    role_name name NOT NULL PRIMARY KEY,
    instance_name character varying NOT NULL
);

-- The one host that this session's credentials are for; null for none. By the role that logged in, whatever role it
-- has taken on since.
CREATE OR REPLACE FUNCTION cloud.own_instance() RETURNS character varying
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT c.instance_name FROM cloud.host_credentials c WHERE c.role_name = session_user $$;

CREATE OR REPLACE FUNCTION cloud.is_host() RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT pg_has_role(session_user, 'cloud_host', 'MEMBER') OR pg_has_role(current_user, 'cloud_host', 'MEMBER') $$;

ALTER TABLE cloud.instance_info ENABLE ROW LEVEL SECURITY;
ALTER TABLE cloud.mandelbox_info ENABLE ROW LEVEL SECURITY;

DROP POLICY IF EXISTS own_rows ON cloud.instance_info;
CREATE POLICY own_rows ON cloud.instance_info TO cloud_host
    USING (instance_name = (SELECT cloud.own_instance()));
DROP POLICY IF EXISTS own_rows ON cloud.mandelbox_info;
CREATE POLICY own_rows ON cloud.mandelbox_info TO cloud_host
    USING (instance_name = (SELECT cloud.own_instance()));

DROP POLICY IF EXISTS not_a_host ON cloud.instance_info;
CREATE POLICY not_a_host ON cloud.instance_info USING (NOT (SELECT cloud.is_host()));
DROP POLICY IF EXISTS not_a_host ON cloud.mandelbox_info;
CREATE POLICY not_a_host ON cloud.mandelbox_info USING (NOT (SELECT cloud.is_host()));
