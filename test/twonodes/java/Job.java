import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.lang.reflect.UndeclaredThrowableException;
import java.net.HttpURLConnection;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.URL;
import java.nio.charset.StandardCharsets;
import java.security.PrivilegedExceptionAction;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.crypto.key.KeyProvider;
import org.apache.hadoop.crypto.key.KeyProviderCryptoExtension;
import org.apache.hadoop.crypto.key.KeyProviderCryptoExtension.EncryptedKeyVersion;
import org.apache.hadoop.crypto.key.KeyProviderDelegationTokenExtension;
import org.apache.hadoop.crypto.key.KeyProviderFactory;
import org.apache.hadoop.security.Credentials;
import org.apache.hadoop.security.SecurityUtil;
import org.apache.hadoop.security.UserGroupInformation;
import org.apache.hadoop.security.UserGroupInformation.AuthenticationMethod;
import org.apache.hadoop.security.authentication.client.ConnectionConfigurator;
import org.apache.hadoop.security.ssl.SSLFactory;
import org.apache.hadoop.security.token.Token;
import org.apache.hadoop.security.token.delegation.AbstractDelegationTokenIdentifier;
import org.apache.hadoop.security.token.delegation.web.DelegationTokenAuthenticatedURL;

/**
 * Uses a KMS like a job, through Hadoop's own classes: Job KEYTAB. Each line of standard input is a command, each line
 * of standard output its answer. The answer of a failed command is "ERROR ...".
 *
 * <p>These commands use DelegationTokenAuthenticatedURL, and the node with the base URL: "get USER URL RENEWER" gets a
 * token and keeps it, "use URL" sends a request with only this token, "renew USER URL" and "cancel URL" renew and
 * cancel it.
 *
 * <p>These commands use Hadoop's key provider, which chooses the node: "job-get USER URI RENEWER" gets a token and
 * keeps it, "job-use URI KEY" generates and decrypts an EDEK with it, "job-renew USER" and "job-cancel USER" renew and
 * cancel it. "open USER URI KEY" generates and decrypts an EDEK with the tickets of USER.
 *
 * <p>"load USER URI KEY THREADS" starts threads that generate EDEKs and decrypt them. "count" answers "DECRYPTED ERRORS
 * first error". "stop" ends the threads, and then answers the same.
 */
public final class Job {
  private static final Configuration CONF = new Configuration();
  private static String keytab;
  private static ConnectionConfigurator tls;
  private static final Map<String, UserGroupInformation> USERS = new HashMap<>();

  // token is the token of "get", jobToken the token of "job-get".
  private static Token<AbstractDelegationTokenIdentifier> token;
  private static Token<?> jobToken;

  private static final AtomicLong OPENED = new AtomicLong();
  private static final AtomicLong ERRORS = new AtomicLong();
  private static final AtomicReference<String> FIRST_ERROR = new AtomicReference<>("");
  private static volatile boolean stopped;
  private static Thread[] load = {};

  public static void main(String[] args) throws Exception {
    keytab = args[0];
    UserGroupInformation.setConfiguration(CONF);
    SSLFactory factory = new SSLFactory(SSLFactory.Mode.CLIENT, CONF);
    factory.init();
    tls = factory;
    BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String line; (line = in.readLine()) != null; ) {
      String answer;
      try {
        answer = run(line.split(" "));
      } catch (Throwable e) {
        // doAs wraps an exception that is not an IOException.
        answer = "ERROR " + (e instanceof UndeclaredThrowableException ? e.getCause() : e);
      }
      System.out.println(answer.replace('\n', ' ').replace('\r', ' '));
      System.out.flush();
    }
    System.exit(0);
  }

  private static String run(String[] a) throws Exception {
    switch (a[0]) {
      case "get":
        return as(a[1], () -> {
          DelegationTokenAuthenticatedURL.Token got = new DelegationTokenAuthenticatedURL.Token();
          url().getDelegationToken(new URL(a[2] + "/v1/"), got, a[3]);
          token = got.getDelegationToken();
          return token.getKind().toString();
        });
      case "use":
        return use(a[1]);
      case "renew":
        return as(a[1], () -> Long.toString(url().renewDelegationToken(new URL(a[2] + "/v1/"), copy())));
      case "cancel":
        return userWithoutTickets().doAs((PrivilegedExceptionAction<String>) () -> {
          url().cancelDelegationToken(new URL(a[1] + "/v1/"), copy());
          return "cancelled";
        });
      case "job-get":
        return as(a[1], () -> {
          Credentials credentials = new Credentials();
          KeyProviderDelegationTokenExtension.createKeyProviderDelegationTokenExtension(provider(a[2]))
              .addDelegationTokens(a[3], credentials);
          jobToken = credentials.getAllTokens().iterator().next();
          return jobToken.getKind() + " " + jobToken.getService();
        });
      case "job-use": {
        UserGroupInformation job = userWithoutTickets();
        job.addToken(jobToken);
        return job.doAs((PrivilegedExceptionAction<String>) () -> open(a[1], a[2]));
      }
      case "open":
        return as(a[1], () -> open(a[2], a[3]));
      case "job-renew":
        return as(a[1], () -> Long.toString(jobToken.renew(CONF)));
      case "job-cancel":
        return as(a[1], () -> {
          jobToken.cancel(CONF);
          return "cancelled";
        });
      case "load":
        return as(a[1], () -> {
          start(crypto(a[2]), a[3], Integer.parseInt(a[4]));
          return "begun";
        });
      case "count":
        return count();
      case "stop":
        stopped = true;
        for (Thread t : load) {
          t.join();
        }
        return count();
      default:
        throw new IllegalArgumentException(Arrays.toString(a));
    }
  }

  /** A copy of the token, without the owner's cookies. A renewal or a cancel changes only the copy. */
  private static DelegationTokenAuthenticatedURL.Token copy() {
    DelegationTokenAuthenticatedURL.Token t = new DelegationTokenAuthenticatedURL.Token();
    t.setDelegationToken(token);
    return t;
  }

  private static String use(String base) throws Exception {
    URL names = new URL(base + "/v1/keys/names");
    // Hadoop's client finds a token by its service: the address of the node.
    token.setService(SecurityUtil.buildTokenService(new InetSocketAddress(names.getHost(), names.getPort())));
    UserGroupInformation bearer = userWithoutTickets();
    bearer.addToken(token);
    return bearer.doAs((PrivilegedExceptionAction<String>) () -> {
      HttpURLConnection c = url().openConnection(names, new DelegationTokenAuthenticatedURL.Token());
      int status = c.getResponseCode();
      c.disconnect();
      return status + " " + c.getResponseMessage();
    });
  }

  private static String open(String uri, String key) throws Exception {
    KeyProviderCryptoExtension crypto = crypto(uri);
    return "opened " + crypto.decryptEncryptedKey(crypto.generateEncryptedKey(key)).getMaterial().length;
  }

  private static void start(KeyProviderCryptoExtension crypto, String key, int threads) throws IOException {
    UserGroupInformation user = UserGroupInformation.getCurrentUser();
    stopped = false;
    load = new Thread[threads];
    for (int i = 0; i < threads; i++) {
      load[i] = new Thread(() -> user.doAs((java.security.PrivilegedAction<Void>) () -> {
        while (!stopped) {
          try {
            EncryptedKeyVersion e = crypto.generateEncryptedKey(key);
            if (crypto.decryptEncryptedKey(e).getMaterial().length != 16) {
              throw new IOException("a DEK of another length");
            }
            OPENED.incrementAndGet();
          } catch (Throwable e) {
            ERRORS.incrementAndGet();
            java.io.StringWriter trace = new java.io.StringWriter();
            e.printStackTrace(new java.io.PrintWriter(trace));
            FIRST_ERROR.compareAndSet("", trace.toString());
          }
        }
        return null;
      }));
      load[i].start();
    }
  }

  private static String count() {
    return OPENED + " " + ERRORS + " " + FIRST_ERROR;
  }

  private static DelegationTokenAuthenticatedURL url() {
    return new DelegationTokenAuthenticatedURL(tls);
  }

  private static KeyProvider provider(String uri) throws Exception {
    return KeyProviderFactory.get(new URI(uri), CONF);
  }

  private static KeyProviderCryptoExtension crypto(String uri) throws Exception {
    return KeyProviderCryptoExtension.createKeyProviderCryptoExtension(provider(uri));
  }

  /** A user without tickets. */
  private static UserGroupInformation userWithoutTickets() {
    UserGroupInformation u = UserGroupInformation.createRemoteUser("nobody");
    u.setAuthenticationMethod(AuthenticationMethod.TOKEN);
    return u;
  }

  private static <T> T as(String user, PrivilegedExceptionAction<T> action) throws Exception {
    UserGroupInformation u = USERS.get(user);
    if (u == null) {
      u = UserGroupInformation.loginUserFromKeytabAndReturnUGI(user, keytab);
      USERS.put(user, u);
    }
    return u.doAs(action);
  }

  private Job() { }
}
