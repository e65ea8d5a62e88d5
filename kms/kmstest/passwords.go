package kmstest

// PasswordURIs are URIs with the password hunter2, as somebody may write them by mistake, escaped for XML.
var PasswordURIs = []string{
	"jceks://file@/x?pass%77ord=hunter2",
	"jceks://file@/x?password=hunter2",
	"jceks://file@/x%3Fpassword%3Dhunter2",
	"kms://user:hunter2@h:9600/kms",
	"kms://https@user%3Ahunter2%40h:9600/kms",
	"pkcs11:token=a?PIN-VALUE=hunter2",
	"pkcs11:token=a;pin%2dvalue=hunter2?module-path=/x.so",
	"user:hunter2@h",
	"//user:hunter2@h/x",
	"http://h/x, postgresql://user:hunter2@h/x?sslmode=none",
	"postgresql://h/x?%70assword=hunter2&amp;sslmode=none",
	"ldap://h?credential=hunter2",
	"cloudera.hsmkp://file@/x#pin=hunter2",
	"postgresql//u:hunter2@127.0.0.1:1/x",
	"postgresql:/u:hunter2@127.0.0.1:1/x",
	"postgresql://u@127.0.0.1:1/x?passwd%3Dhunter2",
	"host=127.0.0.1 user=u password=hunter2",
}
