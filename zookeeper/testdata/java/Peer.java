import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.lang.reflect.Proxy;
import java.util.Properties;
import javax.servlet.ServletContext;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.io.Text;
import org.apache.hadoop.security.UserGroupInformation;
import org.apache.hadoop.security.authentication.util.Signer;
import org.apache.hadoop.security.authentication.util.ZKSignerSecretProvider;
import org.apache.hadoop.security.token.Token;
import org.apache.hadoop.security.token.delegation.web.DelegationTokenIdentifier;
import org.apache.hadoop.security.token.delegation.web.DelegationTokenManager;

/**
 * Hadoop's own classes beside ours on one ZooKeeper. It does what the lines of its standard input ask for, and answers
 * each with one line: "ok RESULT" or "error MESSAGE".
 * Arguments: connection string, and the validity of a cookie in milliseconds.
 */
public class Peer {
  private static ZKSignerSecretProvider secrets;
  private static DelegationTokenManager tokens;

  public static void main(String[] args) throws Exception {
    Properties signer = new Properties();
    signer.setProperty("signer.secret.provider.zookeeper.connection.string", args[0]);
    signer.setProperty("signer.secret.provider.zookeeper.path", "/hadoop-kms/hadoop-auth-signature-secret");
    long validity = Long.parseLong(args[1]);
    Configuration conf = new Configuration(false);
    conf.set("zk-dt-secret-manager.enable", "true");
    conf.set("zk-dt-secret-manager.zkConnectionString", args[0]);
    conf.set("zk-dt-secret-manager.zkAuthType", "none");
    BufferedReader in = new BufferedReader(new InputStreamReader(System.in, "UTF-8"));
    for (String line; (line = in.readLine()) != null;) {
      String[] words = line.split(" ");
      try {
        System.out.println("ok " + run(words, signer, validity, conf));
      } catch (Throwable e) {
        System.out.println("error " + String.valueOf(e).replace('\n', ' '));
      }
    }
    System.exit(0);
  }

  private static String run(String[] w, Properties signer, long validity, Configuration conf) throws Exception {
    switch (w[0]) {
      case "start-signer":
        secrets = new ZKSignerSecretProvider();
        ServletContext none = (ServletContext) Proxy.newProxyInstance(Peer.class.getClassLoader(), new Class<?>[] {ServletContext.class}, (p, m, a) -> null);
        secrets.init(signer, none, validity);
        return "";
      case "sign":
        return new Signer(secrets).sign(w[1]);
      case "verify-signed":
        return new Signer(secrets).verifyAndExtract(w[1]);
      case "start-tokens":
        tokens = new DelegationTokenManager(conf, new Text("kms-dt"));
        tokens.init();
        return "";
      case "new":
        return tokens.createToken(UserGroupInformation.createRemoteUser(w[1]), w[2]).encodeToUrlString();
      case "verify":
        return tokens.verifyToken(token(w[1])).getShortUserName();
      case "renew":
        return String.valueOf(tokens.renewToken(token(w[1]), w[2]));
      case "cancel":
        tokens.cancelToken(token(w[1]), w[2]);
        return "";
      default:
        throw new IllegalArgumentException(w[0]);
    }
  }

  private static Token<DelegationTokenIdentifier> token(String text) throws Exception {
    Token<DelegationTokenIdentifier> t = new Token<>();
    t.decodeFromUrlString(text);
    return t;
  }
}
