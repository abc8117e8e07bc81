DROP FUNCTION auth.forget_account_failures;
DROP TABLE auth.address_failures;
DROP TABLE auth.account_failures;
