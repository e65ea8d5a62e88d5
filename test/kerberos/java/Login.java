import java.io.File;
import java.net.HttpURLConnection;
import java.net.URL;
import java.util.Base64;
import java.util.HashMap;
import java.util.Map;
import javax.security.auth.Subject;
import javax.security.auth.login.AppConfigurationEntry;
import javax.security.auth.login.Configuration;
import javax.security.auth.login.LoginContext;
import org.apache.hadoop.security.authentication.client.AuthenticatedURL;
import org.apache.hadoop.security.authentication.client.KerberosAuthenticator;
import org.ietf.jgss.GSSContext;
import org.ietf.jgss.GSSManager;
import org.ietf.jgss.GSSName;
import org.ietf.jgss.Oid;

/**
 * Logs in with the tickets of a cache, and runs one command: CACHE PRINCIPAL COMMAND. Commands:
 *
 * <pre>
 * jdk URL                 sends a request with the JDK's SPNEGO
 * hadoop URL              sends a request with Hadoop's KerberosAuthenticator
 * raw URL                 sends a raw krb5 token, and verifies the token in the answer
 * token SERVICE [spnego]  prints a token, raw krb5 or SPNEGO, and does not send it
 * </pre>
 */
public class Login {
  static byte[] readAll(java.io.InputStream in) throws Exception {
    java.io.ByteArrayOutputStream out = new java.io.ByteArrayOutputStream();
    byte[] b = new byte[4096];
    for (int n; (n = in.read(b)) > 0;) {
      out.write(b, 0, n);
    }
    return out.toByteArray();
  }

  static GSSContext context(String service, boolean spnego, boolean host) throws Exception {
    GSSManager m = GSSManager.getInstance();
    GSSName name = host ? m.createName(service, GSSName.NT_HOSTBASED_SERVICE)
        : m.createName(service, new Oid("1.2.840.113554.1.2.2.1"));
    GSSContext c = m.createContext(name, new Oid(spnego ? "1.3.6.1.5.5.2" : "1.2.840.113554.1.2.2"), null, GSSContext.DEFAULT_LIFETIME);
    c.requestMutualAuth(true);
    c.requestCredDeleg(true);
    return c;
  }

  static String run(String[] a) throws Exception {
    switch (a[2]) {
      case "jdk": {
        HttpURLConnection c = (HttpURLConnection) new URL(a[3]).openConnection();
        return c.getResponseCode() + " " + new String(readAll(c.getInputStream()), "UTF-8") + " " + c.getHeaderField("Set-Cookie");
      }
      case "hadoop": {
        AuthenticatedURL.Token token = new AuthenticatedURL.Token();
        HttpURLConnection c = new AuthenticatedURL(new KerberosAuthenticator()).openConnection(new URL(a[3]), token);
        return c.getResponseCode() + " " + new String(readAll(c.getInputStream()), "UTF-8") + " " + token;
      }
      case "raw": {
        GSSContext ctx = context("HTTP@localhost", false, true);
        byte[] out = ctx.initSecContext(new byte[0], 0, 0);
        HttpURLConnection c = (HttpURLConnection) new URL(a[3]).openConnection();
        c.setRequestProperty("Authorization", "Negotiate " + Base64.getEncoder().encodeToString(out));
        int status = c.getResponseCode();
        String header = c.getHeaderField("WWW-Authenticate");
        byte[] in = Base64.getDecoder().decode(header.substring("Negotiate ".length()));
        ctx.initSecContext(in, 0, in.length);
        return status + " " + new String(readAll(c.getInputStream()), "UTF-8") + (ctx.isEstablished() && ctx.getMutualAuthState() ? " proved" : " not proved");
      }
      case "token":
        return Base64.getEncoder().encodeToString(context(a[3], a.length > 4, false).initSecContext(new byte[0], 0, 0));
      default:
        throw new IllegalArgumentException(a[2]);
    }
  }

  public static void main(String[] a) throws Exception {
    final Map<String, String> o = new HashMap<>();
    o.put("useTicketCache", "true");
    o.put("ticketCache", a[0]);
    o.put("principal", a[1]);
    o.put("doNotPrompt", "true");
    LoginContext lc = new LoginContext("x", new Subject(), null, new Configuration() {
      public AppConfigurationEntry[] getAppConfigurationEntry(String n) {
        return new AppConfigurationEntry[] {new AppConfigurationEntry("com.sun.security.auth.module.Krb5LoginModule",
            AppConfigurationEntry.LoginModuleControlFlag.REQUIRED, o)};
      }
    });
    lc.login();
    System.out.println(Subject.doAs(lc.getSubject(), (java.security.PrivilegedExceptionAction<String>) () -> run(a)));
  }
}
