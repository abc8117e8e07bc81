DROP FUNCTION auth.forget_signed_requests;
DROP TABLE auth.signed_request;
